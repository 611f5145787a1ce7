"""List, read, draw and check the images of a data set."""
