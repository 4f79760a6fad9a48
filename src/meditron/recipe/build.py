"""One attempt at building a stage: fetch its inputs, do its work, then write its manifest or the failure."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from meditron.core import machine
from meditron.core.config import semantic_fields
from meditron.core.errors import MeditronError, is_out_of_memory
from meditron.recipe.external_inputs import fetch_input, hub_name
from meditron.recipe.in_progress import RECORDS, begin_attempt, record_failure
from meditron.recipe.schema import StageSpec
from meditron.recipe.stage_status import StageStatus, stage_payload
from meditron.store.fetch import public_source
from meditron.store.files import remove_temporaries
from meditron.store.manifest import (
    Artifact,
    FileRecord,
    Git,
    InputRecord,
    Manifest,
    fingerprint,
    record_files,
    write_manifest,
)

__all__ = ["StageBuild"]

_MEMORY_KEYS = (
    *("micro_batch_size", "batch_size", "sequence_length", "batch_tokens", "document_tokens"),
    *("shard_documents", "workers", "threads"),
)
"""Config keys that determine how much memory a stage uses, those with the largest effect first."""


class StageBuild:
    """One attempt at building a stage, as a context manager around the stage's work.

    Entering records the attempt and fetches the inputs; `finish` writes the manifest. If the work raises an
    error, the error is recorded as the stage's failure. If the work is killed or interrupted, no failure is
    recorded: the stage stays partial and the next run continues it.
    """

    def __init__(self, status: StageStatus, statuses: Mapping[str, StageStatus]) -> None:
        self.inputs: dict[str, Artifact] = {}
        self._status, self._statuses = status, statuses
        self._payload = stage_payload(status.spec, status.digests)

    def __enter__(self) -> Self:
        folder = self._status.folder
        self._record = begin_attempt(folder, self._payload)
        try:
            # Temporary files of an earlier attempt that was killed during a write.
            remove_temporaries(folder)
            self.inputs = {key: self._input_artifact(key) for key in self._status.inputs}
        except Exception as error:
            vars(error)["stage"] = self._status.name
            record_failure(folder, error)
            raise
        self._began = time.monotonic()
        return self

    def _input_artifact(self, key: str) -> Artifact:
        """Return one input of the stage: a fetched external input, or a dependency's folder."""
        reference, digest = self._status.inputs[key], str(self._status.digests[key])
        if reference.source is not None:
            path, selector = fetch_input(reference.source)
            name = "base" if reference.text == "base" else key
            return Artifact(name, path, digest, selector=selector, hub_name=hub_name(reference.source))
        dependency = self._statuses[str(reference.stage)]
        return Artifact(dependency.name, dependency.folder, digest, dependency.manifest, reference.selector)

    def finish(self, metrics: Mapping[str, Any]) -> float:
        """Write the manifest, the last file of a finished stage; return the seconds of work."""
        folder = self._status.folder
        seconds = round(time.monotonic() - self._began, 3)
        files = [record for record in record_files(folder) if record.path not in RECORDS]
        if not any(record.content for record in files):
            raise MeditronError(f"{self._status.name} ended without leaving a file in {folder}")
        metrics = {**metrics, "seconds": seconds, "attempts": self._record.attempts}
        # The manifest is written last, because its existence means that the stage is complete.
        write_manifest(folder, self._build_manifest(metrics, files))
        for name in RECORDS:
            (folder / name).unlink(missing_ok=True)
        return seconds

    def _build_manifest(self, metrics: dict[str, Any], files: list[FileRecord]) -> Manifest:
        spec = self._status.spec
        config = spec.config.model_dump(mode="json", by_alias=True)
        decisive = semantic_fields(spec.config)
        here = dict(machine.describe())
        return Manifest(
            kind=spec.stage.kind,
            name=spec.name,
            fingerprint=fingerprint(self._payload),
            payload=self._payload,
            config=config,
            beside={key: value for key, value in config.items() if key not in decisive},
            seed=spec.config.seed,
            inputs={
                key: InputRecord(
                    reference=public_source(reference.source) if reference.source else reference.text,
                    digest=str(self._status.digests[key]),
                )
                for key, reference in self._status.inputs.items()
            },
            files=files,
            metrics=metrics,
            git=Git(**here.pop("git", {})),
            libraries=here.pop("libraries", {}),
            machine=here,
            started=datetime.fromisoformat(self._record.started),
            ended=datetime.now(UTC),
            licences=self._collect_licences(),
        )

    def _collect_licences(self) -> dict[str, str]:
        """Collect the licences of the stage's own sources and those of all stages that it depends on."""
        licences: dict[str, str] = {}
        for reference in self._status.inputs.values():
            manifest = self._statuses[reference.stage].manifest if reference.stage else None
            licences |= manifest.licences if manifest else {}
        spec = self._status.spec
        # Several stages of one kind may have inputs of the same name under different licences, so the stage's
        # name is added.
        prefix = f"{spec.name}: " if spec.stage.repeatable else ""
        return licences | {f"{prefix}{key}": licence for key, licence in spec.config.licences().items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # KeyboardInterrupt is no Exception: an interrupted stage has not failed.
        if not isinstance(error, Exception):
            return
        out_of_memory = is_out_of_memory(error)
        reported = _out_of_memory_error(self._status.spec, error) if out_of_memory else error
        vars(reported)["stage"] = self._status.name  # exceptions of other libraries have no such attribute
        record_failure(self._status.folder, reported)
        if out_of_memory:
            raise reported from error


def _out_of_memory_error(spec: StageSpec, error: Exception) -> MeditronError:
    """Return the error for exhausted memory; its hint names the stage's config keys to lower."""
    keys = [f"{spec.name}.{key}" for key in _MEMORY_KEYS if getattr(spec.config, key, None) is not None]
    return MeditronError(
        f"{spec.name}: out of memory: {str(error) or 'an allocation failed'}",
        hint=f"lower {', '.join(keys)}" if keys else "a machine with more memory is needed",
    )
