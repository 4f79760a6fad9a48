"""Checkpoints: safetensors and JSON, complete or absent, written in the background, for any layout.

`checkpoints/step-00000020/` holds one `rank-00000.safetensors` per rank, with its shards of the float32
masters (`weights`; the model's own weights follow from them), of `exp_avg` and `exp_avg_sq` and the states of
its random generators, and `state.json`: the step, the machine, the layout and the SHA-256 of the other files.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from meditron.core.console import warn
from meditron.core.errors import InputError, LostRankError, MeditronError, SourceError
from meditron.parallel.rank_group import RankGroup
from meditron.parallel.sharded_state import StagedFile, load_shards, plan_shards, read_private
from meditron.store.files import (
    canonical_json,
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

__all__ = ["CheckpointedOptimizer", "Checkpoints", "Restored"]

_FORMAT = 2
_STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")


class CheckpointedOptimizer(Protocol):
    """The part of an optimizer that checkpoints save and restore."""

    @property
    def steps(self) -> int:
        """Updates done."""
        ...

    def state_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's own tensors of this rank, by kind and by the parameter's name."""
        ...

    def set_steps(self, steps: int) -> None:
        """Complete a restore, after the tensors of `state_tensors` have changed."""
        ...


@dataclass(frozen=True)
class Restored:
    """The part of a checkpoint that is not the optimizer's."""

    step: int = 0
    """Training steps done; 0 without a checkpoint."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The plain values that were saved with it."""


class Checkpoints:
    """Checkpoints of one run, in a folder that only this run writes to and all its ranks see.

    All ranks of a job call `save` and `restore`, in the same order. An error on one rank is raised by all.

    Args:
        folder: Holds one folder per checkpoint.
        machine: Properties that affect rounding (threads, versions), as plain JSON; a resumed run warns of a
            change.
        keep: Number of checkpoints to keep, the newest ones.
        layout: The parallel layout, as plain JSON. A checkpoint opens in every other one; the states of the
            random generators are restored in the same one only.
    """

    def __init__(
        self,
        folder: Path,
        machine: Mapping[str, Any],
        *,
        keep: int = 2,
        layout: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.machine, self.keep = folder, machine, keep
        self.layout = _plain_copy(layout or {})
        self._group: RankGroup | None = None
        self._file: tuple[CheckpointedOptimizer, StagedFile] | None = None
        # One thread writes; Python waits for it at exit, so a checkpoint in writing is completed by any exit
        # but a kill.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self, step: int, optimizer: CheckpointedOptimizer, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Copy the state after `step` steps to host memory and start to write it in the background.

        The oldest checkpoints are removed after that. A kill at any moment leaves the checkpoint complete or
        absent. A save waits for the one before.

        Args:
            step: Training steps done; names the checkpoint.
            optimizer: May change its tensors as soon as this returns.
            extra: Further values, as plain JSON, equal on all ranks.

        Raises:
            StorageError: The disk was full or could not be written in the save before; see `wait`.
            TypeError, ValueError: `extra` is not plain JSON.
        """
        self.wait()
        group = self._ranks()
        state = optimizer.state_tensors()
        device = next(tensor.device for tensors in state.values() for tensor in tensors.values())
        record = _plain_copy(
            {
                "format": _FORMAT,
                "step": step,
                "optimizer_steps": optimizer.steps,
                "machine": self.machine,
                "layout": self.layout,
                "ranks": group.size,
                "extra": extra or {},
            }
        )
        random = _random_states(device)
        # The plan is kept: it follows from names, shapes and layout, which are fixed during a run.
        if self._file is None or self._file[0] is not optimizer:
            shards = plan_shards(state, group)
            file = StagedFile(shards, random, rank=group.rank, pin=device.type == "cuda")
            self._file = optimizer, file
        self._file[1].fill(state, random)
        self._writing = self._writer.submit(self._write, self._file[1], record)

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            StorageError: The disk is full or cannot be written; earlier checkpoints are kept.
            LostRankError: Another rank ended before its part was written; earlier checkpoints are kept.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def restore(self, optimizer: CheckpointedOptimizer) -> Restored:
        """Resume from the newest complete checkpoint, of whatever layout and device.

        Incomplete checkpoints of a killed run are removed. A damaged checkpoint is skipped with a warning.

        Raises:
            InputError: A complete checkpoint is of another model; nothing has changed.
        """
        self.wait()
        group = self._ranks()
        group.agree(lambda: remove_temporaries(self.folder) if group.rank == 0 else None)
        # Rank 0 lists the folder for all: on a shared disk the ranks may see different states of it.
        for step, name in group.gather([(step, folder.name) for step, folder in self._newest_first()])[0]:
            folder = self.folder / name
            try:
                state = _read_verified_state(folder, step, group)
            except (InputError, SourceError) as error:
                if group.rank == 0:
                    warn(f"{error.message}; using the checkpoint before it")
                continue
            self._load(folder, state, optimizer, group)
            if state["machine"] != self.machine and group.rank == 0:
                before, now = _machine_text(state["machine"]), _machine_text(self.machine)
                warn(f"{folder} was written with {before}; with {now} later steps may round differently")
            return Restored(step, state["extra"])
        return Restored()

    def newest(self) -> Path | None:
        """Return the folder of the newest complete checkpoint."""
        return next((folder for _, folder in self._newest_first()), None)

    def remove_all(self) -> None:
        """Remove all checkpoints and their folder; one rank calls this, after `wait` on all of them."""
        self.wait()
        if self.folder.is_dir():
            remove_folders(self.folder.iterdir())
            self.folder.rmdir()

    def _ranks(self) -> RankGroup:
        if self._group is None:
            self._group = RankGroup.of_job()
        return self._group

    def _write(self, file: StagedFile, record: dict[str, Any]) -> None:
        """Write a checkpoint; runs in the thread of every rank."""
        group = self._ranks()
        final = self.folder / f"step-{record['step']:08d}"

        def begin() -> Path | None:
            # The temporary folder is in the same folder, because a rename is atomic within one file system
            # only.
            return make_folder(temporary_path(final)) if group.rank == 0 else None

        temporary = group.gather(group.agree(begin))[0]
        assert temporary is not None  # noqa: S101 (for the type checker)
        try:
            name = f"rank-{group.rank:05d}.safetensors"
            digest = group.agree(lambda: file.write(temporary / name))
            files = dict(group.gather((name, digest)))
            group.agree(lambda: self._publish(temporary, final, record | {"files": files}, group))
        except MeditronError as error:
            # After an error of a rank all ranks have ended their writing; after the end of a rank the others
            # may still write to the folder, which the next restore removes.
            if group.rank == 0 and not isinstance(error, LostRankError):
                remove_path(temporary)
            raise

    def _publish(self, temporary: Path, final: Path, record: Mapping[str, Any], group: RankGroup) -> None:
        """Complete a checkpoint and remove the oldest ones, on rank 0."""
        if group.rank != 0:
            return
        with translate_write_errors(final):
            # The record comes last, and files and folder are synced before and after the rename: after a
            # power loss the name exists only if its contents do.
            write_json(temporary / _STATE, dict(record) | {"sha256": _record_digest(record)})
            fsync_path(temporary)
            if final.exists():  # a damaged one that `restore` skipped
                remove_folders([final])
            temporary.rename(final)
            fsync_path(self.folder)
        # Old checkpoints are removed only after the new one is on the disk: a kill here leaves one too many,
        # never one too few.
        remove_folders(old for _, old in self._newest_first()[self.keep :])

    def _load(
        self, folder: Path, state: Mapping[str, Any], optimizer: CheckpointedOptimizer, group: RankGroup
    ) -> None:
        tensors = optimizer.state_tensors()
        try:
            load_shards(folder, tensors, group)
        except ValueError as error:
            raise InputError(
                folder, f"checkpoint of another model: {error}", hint="--rebuild the stage"
            ) from error
        optimizer.set_steps(state["optimizer_steps"])
        # In another layout a rank has other work to do with its random numbers, so it keeps its own seed.
        if (state["layout"], state["ranks"]) == (self.layout, group.size):
            file = folder / f"rank-{group.rank:05d}.safetensors"
            device = next(tensor.device for parts in tensors.values() for tensor in parts.values())
            group.agree(lambda: _restore_random(file, group.rank, device))

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


def _restore_random(file: Path, rank: int, device: torch.device) -> None:
    states = read_private(file, rank, ["torch", device.type])
    torch.set_rng_state(states["torch"])
    # The device's state is absent if the checkpoint was written on another kind of device.
    if device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], device)


def _read_verified_state(folder: Path, step: int, group: RankGroup) -> dict[str, Any]:
    """Read a checkpoint's `state.json`; InputError on all ranks unless all files have the recorded hashes."""
    state = group.gather(group.agree(lambda: _read_state(folder, step) if group.rank == 0 else {}))[0]
    files = sorted(state["files"].items())

    def verify() -> None:
        # Training would silently continue from a flipped bit in an optimizer moment, so every resume hashes
        # all bytes before it loads them. The ranks share the work.
        for name, digest in files[group.rank :: group.size]:
            file = folder / name
            if not file.is_file():
                raise InputError(file, "missing")
            if sha256_file(file) != digest:
                raise InputError(file, "damaged: its SHA-256 is not the recorded one")

    group.agree(verify)
    return state


def _read_state(folder: Path, step: int) -> dict[str, Any]:
    path = folder / _STATE
    state = read_json(path, strict=True)
    if not isinstance(state, dict) or (state.get("format"), state.get("step")) != (_FORMAT, step):
        raise InputError(path, "not the state of this checkpoint")
    if state.pop("sha256", None) != _record_digest(state):
        raise InputError(path, "damaged: its SHA-256 is not the recorded one")
    present = {file.name for file in folder.glob("*.safetensors")}
    # All safetensors files of the folder would be read, so one too many is damage too.
    if unknown := present - state["files"].keys():
        raise InputError(folder / min(unknown), "not a file of this checkpoint")
    return state


def _plain_copy(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value as it comes back from JSON, independent of later changes.

    Raises:
        TypeError: It has a type that JSON cannot represent.
        ValueError: It has a NaN or an infinity.
    """
    copied: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False, default=_mapping_as_dict))
    return copied


def _mapping_as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} cannot be stored as JSON")


def _record_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(record))).hexdigest()


def _machine_text(machine: object) -> str:
    if not isinstance(machine, Mapping):
        return "an unknown machine"
    return ", ".join(f"{key} {value}" for key, value in machine.items())
