"""What comes of a run: figures, strips, a report, and weights for others."""
