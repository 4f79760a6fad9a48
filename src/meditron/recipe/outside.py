"""Inputs from outside the recipe: what stands for their content, and where they are once fetched."""

from pathlib import Path

from meditron.model.presets import preset
from meditron.store import fetch as store
from meditron.store.files import exists

__all__ = ["fetched", "identity", "local_file"]

_UNFETCHED = "init:"


def identity(text: str, *, cached: bool = True) -> str:
    """What stands for an outside input's content in a fingerprint. Nothing is downloaded.

    With `cached` off every byte of a local one is read, whatever the cache of digests says.

    SourceError where a local one, or the preset of seeded weights, is missing.
    """
    source, selector = _split(text)
    if source.startswith(_UNFETCHED):
        preset(source)
    return store.identity(source, cached=cached) + (f":{selector}" if selector else "")


def fetched(text: str) -> tuple[Path, str | None]:
    """The file or folder that an outside input names, downloaded where that is needed, and its selector.

    Seeded weights, `init:NAME`, stay as they are: there is nothing to fetch.
    """
    source, selector = _split(text)
    return (Path(source) if source.startswith(_UNFETCHED) else store.fetch(source)), selector


def local_file(text: str) -> Path | None:
    """Return the file, folder or `folder:NAME` that an outside input names, if no download is needed.

    None for an input that is not in the cache, and for seeded weights.

    Raises:
        SourceError: a local file is missing.
        InputError: an archive is damaged.
    """
    source, selector = _split(text)
    path = None if source.startswith(_UNFETCHED) else store.cached(source)
    return path.with_name(f"{path.name}:{selector}") if path and selector else path


def _split(text: str) -> tuple[str, str | None]:
    """`folder:NAME` into its parts, where there is such a folder; anything else is a source as a whole."""
    folder, colon, selector = text.rpartition(":")
    if colon and not exists(store.expanded(text)) and store.expanded(folder).is_dir():
        return folder, selector
    return text, None
