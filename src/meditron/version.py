"""The package's version, in a module of its own that every other module can import."""

__all__ = ["__version__"]

__version__ = "0.1.0"
