"""Data, tensor and pipeline parallelism, applied from outside to a plain model."""
