"""Images in: a folder, split, read and kept, and the crops that are cut from it."""
