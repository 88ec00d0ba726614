"""Results of a run: metrics, strips, the report, and exported weights."""
