"""Checkpoints: safetensors and JSON, complete or absent, one folder per step.

`checkpoints/step-00000020/` holds `weights.safetensors` (the float32 masters; the model's own weights follow
from them), `exp_avg.safetensors`, `exp_avg_sq.safetensors`, `random.safetensors` (states of torch's random
generators) and `state.json`: the step, the machine, and the SHA-256 of the other files.
"""

import re
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
from meditron.store.files import (
    fsync_path,
    make_folder,
    read_json,
    remove_folders,
    remove_path,
    remove_temporaries,
    sha256_file,
    temporary_path,
    translate_write_errors,
    write_json,
)
from meditron.train.optimizer import MasterAdamW

__all__ = ["Checkpoints"]

_FORMAT = 1
_PARTS = ("weights", "exp_avg", "exp_avg_sq", "random")
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of one run, in a folder that only this run writes to."""

    folder: Path
    machine: Mapping[str, Any]
    """Properties that affect rounding (threads, versions), as plain JSON; a resumed run warns of a change."""
    keep: int = 2
    """Number of checkpoints to keep, the newest ones."""

    def save(self, step: int, optimizer: MasterAdamW) -> Path:
        """Write the checkpoint after `step` steps, then remove the oldest ones.

        A kill at any moment leaves the checkpoint complete or absent.

        Raises:
            StorageError: The disk is full or cannot be written; earlier checkpoints are kept.
        """
        final = self.folder / f"step-{step:08d}"
        # The temporary folder is in the same folder, because a rename is atomic within one file system only.
        temporary = make_folder(temporary_path(final))
        try:
            self._write(temporary, step, optimizer)
            if final.exists():  # a damaged one that `restore` skipped
                remove_folders([final])
            # Files and folder are synced before and after the rename: after a power loss the name exists
            # only if its contents do.
            temporary.rename(final)
            fsync_path(self.folder)
        except BaseException:
            remove_path(temporary)
            raise
        # Old checkpoints are removed only after the new one is on the disk: a kill here leaves one too many,
        # never one too few.
        remove_folders(old for _, old in self._newest_first()[self.keep :])
        return final

    def restore(self, optimizer: MasterAdamW) -> int:
        """Resume from the newest complete checkpoint, written on this device or another.

        Incomplete checkpoints of a killed run are removed. A damaged checkpoint is skipped with a warning.

        Returns:
            The optimizer steps done, 0 if there is no checkpoint.

        Raises:
            InputError: A complete checkpoint is of another model.
        """
        remove_temporaries(self.folder)
        for step, folder in self._newest_first():
            try:
                state = _read_verified_state(folder, step)
            except (InputError, SourceError) as error:
                warn(f"{error.message}; using the checkpoint before it")
                continue
            self._load(folder, step, optimizer)
            if state.get("machine") != self.machine:
                before, now = _machine_text(state.get("machine")), _machine_text(self.machine)
                warn(f"{folder} was written with {before}; with {now} later steps may round differently")
            return step
        return 0

    def newest(self) -> Path | None:
        """Return the folder of the newest checkpoint."""
        return next((folder for _, folder in self._newest_first()), None)

    def remove_all(self) -> None:
        """Remove all checkpoints and their folder."""
        if self.folder.is_dir():
            remove_folders(self.folder.iterdir())
            self.folder.rmdir()

    def _write(self, folder: Path, step: int, optimizer: MasterAdamW) -> None:
        digests = {}
        for part, tensors in {
            **optimizer.state_tensors(),
            "random": _random_states(optimizer.device),
        }.items():
            path = folder / f"{part}.safetensors"
            _write_tensors(path, tensors)
            digests[part] = sha256_file(path)
        state = {"format": _FORMAT, "step": step, "machine": dict(self.machine), "sha256": digests}
        write_json(folder / "state.json", state)

    def _load(self, folder: Path, step: int, optimizer: MasterAdamW) -> None:
        # Tensors are loaded to the CPU; the optimizer copies them into its own tensors, on whichever device
        # those are.
        parts = {part: load_file(folder / f"{part}.safetensors") for part in _PARTS}
        try:
            optimizer.restore(parts, step)
        except ValueError as error:
            raise InputError(
                folder, f"checkpoint of another model: {error}", hint="--rebuild the stage"
            ) from error
        _restore_random(parts["random"], optimizer.device)

    def _newest_first(self) -> list[tuple[int, Path]]:
        paths = list(self.folder.iterdir()) if self.folder.is_dir() else []
        matches = [(match, path) for path in paths if (match := _NAME.fullmatch(path.name))]
        return sorted(((int(match[1]), path) for match, path in matches), reverse=True)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's CPU generator, and of the device's own if it has one."""
    states = {"torch": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def _restore_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    # The device's state is absent if the checkpoint was written on another kind of device.
    if device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], device)


def _read_verified_state(folder: Path, step: int) -> dict[str, Any]:
    """Read a checkpoint's `state.json`; InputError unless all its files have the recorded hashes."""
    path = folder / "state.json"
    state = read_json(path)
    if not isinstance(state, dict) or (state.get("format"), state.get("step")) != (_FORMAT, step):
        raise InputError(path, "not the state of this checkpoint")
    for part in _PARTS:
        file = folder / f"{part}.safetensors"
        if not file.is_file():
            raise InputError(file, "missing")
        # Training would silently continue from a flipped bit in an optimizer moment, so every resume hashes
        # all bytes before it loads them.
        if sha256_file(file) != state.get("sha256", {}).get(part):
            raise InputError(file, "damaged: its SHA-256 is not the recorded one")
    return state


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with translate_write_errors(path):
        try:
            save_file(dict(tensors), path)
        except SafetensorError as error:  # safetensors raises this for an OSError (full disk) too
            raise StorageError(
                f"{path}: {error}", hint="free disk space, or choose another folder with --out"
            ) from error
        fsync_path(path)


def _machine_text(machine: object) -> str:
    if not isinstance(machine, Mapping):
        return "an unknown machine"
    return ", ".join(f"{key} {value}" for key, value in machine.items())
