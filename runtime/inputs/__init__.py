"""Files of images and boxes: how they are found, read, made grey and turned to be seen."""
