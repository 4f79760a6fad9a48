"""Checkpoints: safetensors and JSON, whole or absent, one folder a step.

`checkpoints/step-00000020/` holds `weights.safetensors` (the float32 masters, from which the model's own
weights follow), `exp_avg.safetensors`, `exp_avg_sq.safetensors`, `random.safetensors` (torch's generator) and
`state.json`: the step, what the run was made on, and the SHA-256 of the other files.
"""

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from meditron.core.console import warn
from meditron.core.errors import InputError, SourceError, StorageError
from meditron.store.files import make_folder, read_json, sha256_file, translate_write_errors, write_json
from meditron.train.optimizer import MasterAdamW

__all__ = ["Checkpoints"]

_FORMAT = 1
_PARTS = ("weights", "exp_avg", "exp_avg_sq", "random")
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in a folder that only this run writes to."""

    folder: Path
    machine: Mapping[str, Any]
    """What decides how sums are rounded (threads, versions), as plain JSON. Another one is warned of."""
    keep: int = 2
    """Newest ones to keep."""

    def save(self, step: int, optimizer: MasterAdamW) -> Path:
        """Write the checkpoint after `step` steps, then remove those that are too many.

        A kill at any moment leaves it whole or absent. StorageError where the disk is full or refuses the
        bytes; the earlier ones are then still there.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = make_folder(self.folder / f"{_TEMPORARY}{secrets.token_hex(4)}")
        try:
            self._write(temporary, step, optimizer)
            if final.exists():  # a damaged one, which an earlier attempt left behind
                _remove(final)
            temporary.rename(final)
            _sync(self.folder)
        except BaseException:
            shutil.rmtree(temporary)
            raise
        for _, old in self._newest_first()[self.keep :]:
            _remove(old)
        return final

    def restore(self, optimizer: MasterAdamW) -> int:
        """Go on from the newest whole checkpoint: the steps it has behind it, or 0 where there is none.

        What a kill left half-written is removed. A damaged one is named in a warning, and the one before it
        is taken. InputError where a whole one is of another model.
        """
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            _remove(leftover)
        for step, folder in self._newest_first():
            try:
                state = _checked(folder, step)
            except (InputError, SourceError) as error:
                warn(f"{error.message}; the checkpoint before it is taken instead")
                continue
            self._go_back(folder, step, optimizer)
            if state.get("machine") != self.machine:
                was, now = _spoken(state.get("machine")), _spoken(self.machine)
                warn(f"{folder} was made with {was}; with {now} what follows may round differently")
            return step
        return 0

    def newest(self) -> Path | None:
        """The newest checkpoint."""
        return next((folder for _, folder in self._newest_first()), None)

    def remove(self) -> None:
        """Remove them all: the model has been exported."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                _remove(path)
            self.folder.rmdir()

    def _write(self, folder: Path, step: int, optimizer: MasterAdamW) -> None:
        digests = {}
        for part, tensors in {**optimizer.tensors(), "random": {"torch": torch.get_rng_state()}}.items():
            path = folder / f"{part}.safetensors"
            _write_tensors(path, tensors)
            digests[part] = sha256_file(path)
        state = {"format": _FORMAT, "step": step, "machine": dict(self.machine), "sha256": digests}
        write_json(folder / "state.json", state)

    def _go_back(self, folder: Path, step: int, optimizer: MasterAdamW) -> None:
        parts = {part: load_file(folder / f"{part}.safetensors") for part in _PARTS}
        try:
            optimizer.restore(parts, step)
        except ValueError as error:
            raise InputError(folder, f"not of this model: {error}", hint="--rebuild the stage") from error
        torch.set_rng_state(parts["random"]["torch"])

    def _newest_first(self) -> list[tuple[int, Path]]:
        found = [] if not self.folder.is_dir() else list(self.folder.iterdir())
        named = [(match, path) for path in found if (match := _NAME.fullmatch(path.name))]
        return sorted(((int(match[1]), path) for match, path in named), reverse=True)


def _checked(folder: Path, step: int) -> dict[str, Any]:
    """The state of a checkpoint all of whose files are as they were written; InputError for any other."""
    path = folder / "state.json"
    state = read_json(path)
    if not isinstance(state, dict) or (state.get("format"), state.get("step")) != (_FORMAT, step):
        raise InputError(path, "not the state of this checkpoint")
    for part in _PARTS:
        file = folder / f"{part}.safetensors"
        if not file.is_file():
            raise InputError(file, "missing")
        if sha256_file(file) != state.get("sha256", {}).get(part):
            raise InputError(file, "damaged: its SHA-256 is not the recorded one")
    return state


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with translate_write_errors(path):
        try:
            save_file(dict(tensors), path)
        except SafetensorError as error:  # the library's word for an OSError
            raise StorageError(
                f"{path}: {error}", hint="make room, or choose another place with --out"
            ) from error
        _sync(path)


def _spoken(machine: object) -> str:
    return (
        ", ".join(f"{key} {value}" for key, value in machine.items()) if isinstance(machine, Mapping) else "?"
    )


def _remove(folder: Path) -> None:
    """Remove a folder so that a kill in between leaves nothing that could be taken for a checkpoint."""
    if not folder.name.startswith(_TEMPORARY):
        folder = folder.rename(folder.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}"))
    shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Have the bytes of a file, or the entries of a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
