"""Training: a folder of images in, weights out."""
