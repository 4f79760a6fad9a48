"""The door: one file a verb group, thin over the rooms below."""

from meditron.cli.app import main

__all__ = ["main"]
