"""One module a layout: how the images, labels and classes of a data set lie on disk."""
