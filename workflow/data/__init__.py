"""Images: which files a split holds, how they are read, drawn and checked."""
