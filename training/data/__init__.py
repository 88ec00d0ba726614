"""Training data: split, read and cache a folder of images, and cut crops from them."""
