"""Atomic replacement of a model file or folder, after it is complete and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meditron.store.files import fsync_path, remove_path, temporary_path, translate_write_errors

__all__ = ["replace_when_complete"]

# Files of an old model that would otherwise be read together with the files of the new model, or be taken for
# a description of it.
_STALE = (
    *("README.md", "SHA256SUMS", "model.sig"),
    "*.safetensors",
    "*.safetensors.index.json",
    "added_tokens.json",
    "ancestry.json",
    "chat_template.*",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer*",
    "vocab.json",
)
_CONFIG = "config.json"


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and replace `path` by it if the block raises nothing.

    The files of a folder replace those of a model in `path`, config.json last, because a folder without it is
    not read as a model. A failed write leaves nothing behind.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        with translate_write_errors(path):
            if temporary.is_dir():
                _replace_model_folder(path, temporary)
            else:
                temporary.replace(path)
                _remove_signature(path)
            fsync_path(path.parent)
    finally:
        remove_path(temporary)


def _replace_model_folder(folder: Path, new: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    (folder / _CONFIG).unlink(missing_ok=True)
    for pattern in _STALE:
        for file in folder.glob(pattern):
            if file.is_file() or file.is_symlink():
                file.unlink()
                _remove_signature(file)
    for file in sorted(new.iterdir(), key=lambda file: file.name == _CONFIG):
        file.replace(folder / file.name)
        _remove_signature(folder / file.name)
    fsync_path(folder)


def _remove_signature(file: Path) -> None:
    """Remove the signature of a file that was replaced or removed."""
    file.with_name(f"{file.name}.sig").unlink(missing_ok=True)
