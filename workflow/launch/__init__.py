"""The login node: start-up checks, submitting, waiting and publishing. Never imports torch."""
