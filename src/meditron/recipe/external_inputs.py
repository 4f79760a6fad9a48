"""Inputs from outside the recipe: their identity in a fingerprint, and their files once fetched."""

from pathlib import Path

from meditron.model.config import preset
from meditron.store import fetch as store
from meditron.store.files import exists

__all__ = ["fetch_input", "input_identity", "local_input"]

_SEEDED = "init:"  # weights drawn from a seed: nothing to fetch


def input_identity(text: str, *, cached: bool = True) -> str:
    """Return the text that identifies an external input's content in a fingerprint. Downloads nothing.

    With `cached=False` every byte of a local input is read again.

    Raises:
        SourceError: a local input, or the preset of seeded weights, is missing.
    """
    source, selector = _split_selector(text)
    if source.startswith(_SEEDED):
        preset(source)
    return store.identity(source, cached=cached) + (f":{selector}" if selector else "")


def fetch_input(text: str) -> tuple[Path, str | None]:
    """Fetch an external input; return its file or folder, and its selector.

    Seeded weights, `init:NAME`, are returned as they are.
    """
    source, selector = _split_selector(text)
    return (Path(source) if source.startswith(_SEEDED) else store.fetch(source)), selector


def local_input(text: str) -> Path | None:
    """Return the file, folder or `folder:NAME` of an external input, if it needs no download.

    None for an input that is not in the cache, and for seeded weights.

    Raises:
        SourceError: a local file is missing.
        InputError: an archive is damaged.
    """
    source, selector = _split_selector(text)
    path = None if source.startswith(_SEEDED) else store.cached(source)
    return path.with_name(f"{path.name}:{selector}") if path and selector else path


def _split_selector(text: str) -> tuple[str, str | None]:
    """Split `folder:NAME` if there is such a folder; any other text is a source as a whole."""
    # A colon also separates a scheme (`pypi:…`) or belongs to a file's name: only an existing folder decides.
    folder, colon, selector = text.rpartition(":")
    if colon and not exists(store.expanded(text)) and store.expanded(folder).is_dir():
        return folder, selector
    return text, None
