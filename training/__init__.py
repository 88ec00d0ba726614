"""Training: a folder of pictures in, weights out."""
