"""Inputs from outside the recipe: their identity in a fingerprint, and their files once fetched."""

from pathlib import Path

from meditron.model.presets import find_preset
from meditron.store.fetch import cached as cached_source
from meditron.store.fetch import fetch
from meditron.store.fetch import source_identity as source_identity
from meditron.store.models import split_selector

__all__ = ["fetch_input", "input_identity", "local_input"]

_SEEDED = "init:"  # weights drawn from a seed: nothing to fetch


def input_identity(text: str, *, cached: bool = True) -> str:
    """Return the text that identifies an external input's content in a fingerprint. Downloads nothing.

    With `cached=False` every byte of a local input is read again.

    Raises:
        SourceError: a local input, or the preset of seeded weights, is missing.
    """
    source, selector = split_selector(text)
    if source.startswith(_SEEDED):
        find_preset(source)
    return source_identity(source, cached=cached) + (f":{selector}" if selector else "")


def fetch_input(text: str) -> tuple[Path, str | None]:
    """Fetch an external input; return its file or folder, and its selector.

    Seeded weights, `init:NAME`, are returned as they are.
    """
    source, selector = split_selector(text)
    return (Path(source) if source.startswith(_SEEDED) else fetch(source)), selector


def local_input(text: str) -> Path | None:
    """Return the file, folder or `folder:NAME` of an external input, if it needs no download.

    None for an input that is not in the cache, and for seeded weights.

    Raises:
        SourceError: a local file is missing.
        InputError: an archive is damaged.
    """
    source, selector = split_selector(text)
    path = None if source.startswith(_SEEDED) else cached_source(source)
    return path.with_name(f"{path.name}:{selector}") if path and selector else path
