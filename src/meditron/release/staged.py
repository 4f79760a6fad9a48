"""Atomic replacement of a model file or folder, after it is complete and checked."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meditron.store.files import translate_write_errors

__all__ = ["staged"]

# Files of the old model that would be read together with those of the new one.
_STALE = (
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
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and replace `path` by it if the block raises nothing.

    The files of a folder replace those of a model in `path`, config.json last, because a folder without it is
    not read as a model. A failed write leaves nothing behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with translate_write_errors(path):
            if temporary.is_dir():
                _replace_model(path, temporary)
            else:
                temporary.replace(path)
            _sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _replace_model(folder: Path, new: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    (folder / _CONFIG).unlink(missing_ok=True)
    for pattern in _STALE:
        for file in folder.glob(pattern):
            if file.is_file() or file.is_symlink():
                file.unlink()
    for file in sorted(new.iterdir(), key=lambda file: file.name == _CONFIG):
        file.replace(folder / file.name)
    _sync(folder)


def _sync(folder: Path) -> None:
    """Sync a folder, so that renames survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
