"""The command line: one file per command, a thin layer over the packages below."""

from meditron.cli.app import main

__all__ = ["main"]
