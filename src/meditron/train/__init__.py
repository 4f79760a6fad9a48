"""Training: one loop."""
