"""Train networks on a folder of images."""
