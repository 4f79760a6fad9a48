"""Conversion, quantization and model cards: the files of a release."""
