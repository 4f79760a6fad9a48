"""The package's version, for every room to name without importing the door."""

__all__ = ["__version__"]

__version__ = "0.1.0"
