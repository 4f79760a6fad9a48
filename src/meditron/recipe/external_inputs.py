"""Inputs from outside the recipe: their identity in a fingerprint, and their fetched files."""

from pathlib import Path

from meditron.model.presets import find_preset
from meditron.store.collections.records import FetchPreview
from meditron.store.fetch import fetch, fetch_without_download, parse_source, preview_fetch
from meditron.store.fetch import source_identity as source_identity
from meditron.store.files import content_digest
from meditron.store.models import split_selector
from meditron.tasks.registry import is_lm_eval_definition

__all__ = ["fetch_input", "hub_name", "input_identity", "local_input", "preview_input"]

_SEEDED = "init:"  # weights drawn from a seed: nothing to fetch


def input_identity(text: str, *, cached: bool = True) -> str:
    """Return the text that identifies an external input's content in a fingerprint. Downloads nothing.

    With `cached=False` every byte of a local input is read and hashed again. A definition of lm-eval is
    identified by its own content and by that of the definitions and data files that it names.

    Raises:
        SourceError: a local input, or the preset of seeded weights, is missing.
    """
    source, selector = split_selector(text)
    if source.startswith(_SEEDED):
        find_preset(source)
    identity = source_identity(source, cached=cached) + (f":{selector}" if selector else "")
    if is_lm_eval_definition(source) and (path := fetch_without_download(source)) is not None:
        # Imported here: other inputs need neither YAML nor jinja2.
        from meditron.tasks.lm_eval_yaml import files_of_definition

        further = [content_digest(file, cached=cached) for file in files_of_definition(path)[1:]]
        identity += "".join(f"+{digest}" for digest in further)
    return identity


def fetch_input(text: str) -> tuple[Path, str | None]:
    """Fetch an external input; return its file or folder, and its selector.

    For seeded weights, which have no file, the path is the text `init:NAME` itself.
    """
    source, selector = split_selector(text)
    return (Path(source) if source.startswith(_SEEDED) else fetch(source)), selector


def hub_name(text: str) -> str | None:
    """Return `org/name` of an external input that is a model of the Hugging Face hub; None for others."""
    source = parse_source(split_selector(text)[0])
    return source.name if source.scheme == "hf" and source.collection is None else None


def local_input(text: str) -> Path | None:
    """Return the file, the folder or `FOLDER:NAME` of an external input, if it needs no download.

    None for an input that must be downloaded first, and for seeded weights.

    Raises:
        SourceError: a local file is missing.
        InputError: an archive is damaged.
    """
    source, selector = split_selector(text)
    path = None if source.startswith(_SEEDED) else fetch_without_download(source)
    return path.with_name(f"{path.name}:{selector}") if path and selector else path


def preview_input(text: str) -> FetchPreview | None:
    """Return what a collection would download; None for other inputs, and for one that is in the cache.

    Asks the collection's server for its list of files.

    Raises:
        SourceError: there is no such collection.
        FetchError: the server cannot be reached.
    """
    source, _ = split_selector(text)
    return None if source.startswith(_SEEDED) else preview_fetch(source)
