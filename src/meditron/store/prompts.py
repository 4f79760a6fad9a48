"""Prompts with versions, labels and scores, as files in a folder.

    NAME/versions/HASH.toml   the text of a version, with its author, time and parent
    NAME/labels.jsonl         one line for each move of a label, never changed
    NAME/scores.jsonl         one line for each evaluation of a version

The files are meant for git: a version never changes, and histories only grow. The prompts of the package are
listed beside those of the folder and cannot be changed.
"""

import fcntl
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from meditron.core.config import Record, first_problem
from meditron.core.errors import InputError, SourceError, UsageError
from meditron.store.file_lock import open_lock_file
from meditron.store.files import atomic_write, make_folder, translate_read_errors
from meditron.store.jsonl import encode_row
from meditron.store.people import Person
from meditron.store.prompt_text import PromptText, PromptVersion, read_version, short_version
from meditron.store.resumable_jsonl import ResumableJsonl

__all__ = ["LATEST", "PRODUCTION", "LabelMove", "PromptScore", "PromptStore", "StoredPrompt", "utc_now"]

LATEST, PRODUCTION = "latest", "production"
"""The label of the version that was written last, and the label that a name without one stands for."""
_PACKAGED = Path(__file__).with_name("prompts")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{8,64}")  # or the first digits of one
_MAX_REASON = 1000
_Line = TypeVar("_Line", bound=Record)
_Version = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class LabelMove(Record):
    """One move of a label."""

    time: str
    person: str
    label: str
    version: _Version
    """Hash of the version that has the label now."""
    previous: _Version | None
    """Hash of the version that had it before."""
    reason: str = ""
    rollback: bool = False
    """True if the move takes back the last one."""


class PromptScore(Record):
    """The result of one evaluation of a version."""

    time: str
    person: str
    version: _Version
    task: str
    model: str = ""
    method: str = ""
    n: int = Field(ge=1)
    """Number of questions."""
    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float] | None = None
    """95 % interval of the accuracy."""
    result_sha256: str = ""
    """SHA-256 of the evaluation's prompts and questions, by which two scores can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPrompt:
    """A version of a prompt, found by its name and label or hash."""

    name: str
    label: str | None
    """The label it was found by; None for a hash."""
    text: PromptVersion

    @property
    def version(self) -> str:
        """Hash of the version."""
        return self.text.version

    @property
    def id(self) -> str:
        """Name and hash: `NAME@HASH`."""
        return f"{self.name}@{self.version}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "name": self.name,
            "label": self.label,
            "version": self.version,
            "variables": list(self.text.variables),
            **self.text.model_dump(mode="json"),
        }

    def render(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """Return the prompt as chat messages; errors are those of `PromptText.render`, with the name."""
        try:
            return self.text.render(values)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error.message}") from error


class PromptStore:
    """The prompts of a folder and of the package. Several processes may write to one folder."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which the first write creates."""
        self.folder = folder

    def names(self) -> list[str]:
        """Return the names of all prompts, sorted; those of the package are among them."""
        own = []
        if self.folder.is_dir():
            with translate_read_errors(self.folder):
                own = [path.name for path in self.folder.iterdir() if (path / "versions").is_dir()]
        return sorted({*filter(_NAME.fullmatch, own), *_packaged()})

    def is_packaged(self, name: str) -> bool:
        """Return whether a prompt belongs to the package and cannot be changed."""
        return name in _packaged()

    def versions(self, name: str) -> list[PromptVersion]:
        """Return the versions of a prompt, oldest first.

        Raises:
            SourceError: there is no such prompt.
            InputError: a file is damaged.
        """
        if self.is_packaged(name):
            return [_packaged()[name]]
        files = sorted(self._known(name).joinpath("versions").glob("*.toml"))
        found = [read_version(file, version=file.stem) for file in files]
        return sorted(found, key=lambda version: (version.time, version.version))

    def labels(self, name: str) -> dict[str, str]:
        """Return label → hash of its version; errors are those of `history`."""
        if self.is_packaged(name):
            return {LATEST: _packaged()[name].version}
        return {move.label: move.version for move in self.history(name)}

    def history(self, name: str) -> list[LabelMove]:
        """Return the moves of a prompt's labels, oldest first.

        Raises:
            SourceError: there is no such prompt.
            InputError: the file is damaged.
        """
        return [] if self.is_packaged(name) else _read_lines(self._known(name) / "labels.jsonl", LabelMove)

    def scores(self, name: str) -> list[PromptScore]:
        """Return the scores of a prompt's versions, oldest first; errors are those of `history`."""
        self._known(name)
        return _read_lines(self.folder / name / "scores.jsonl", PromptScore)

    def find(self, reference: str) -> StoredPrompt:
        """Return the version that a text names.

        Args:
            reference: `NAME`, `NAME@LABEL` or `NAME@HASH`, the hash with at least 8 digits. A name alone
                stands for the label `production`, or `latest` if that label was never set.

        Raises:
            SourceError: there is no such prompt, label or version.
            UsageError: the hash begins several versions.
            InputError: a file is damaged.
        """
        name, mark, chosen = reference.partition("@")
        labels = self.labels(name)
        label = chosen if mark else (PRODUCTION if PRODUCTION in labels else LATEST)
        if label in labels:
            return StoredPrompt(name=name, label=label, text=self._read(name, labels[label]))
        if _HASH.fullmatch(label):
            return StoredPrompt(name=name, label=None, text=self._read(name, self._complete(name, label)))
        known = ", ".join(sorted(labels)) or "none"
        raise SourceError(f"{name} has no label '{label}'", hint=f"labels: {known}")

    def summaries(self) -> list[dict[str, Any]]:
        """Return the fields of each prompt for JSON: labels, number of versions, description of `find`'s."""
        return [
            {
                "name": name,
                "labels": self.labels(name),
                "versions": len(self.versions(name)),
                "packaged": self.is_packaged(name),
                "description": self.find(name).text.description,
            }
            for name in self.names()
        ]

    def list_prompts(self) -> list[tuple[str, str, str, str]]:
        """Return (name, label, hash, system text) of the labelled versions that are a system text alone.

        A version with messages or variables is left out: its system text is only a part of it.
        """
        return [
            (name, label, version, text.system)
            for name in self.names()
            for label, version in sorted(self.labels(name).items())
            for text in [self._read(name, version)]
            if not text.messages and not text.variables
        ]

    def add(
        self, name: str, text: PromptText, person: Person, *, description: str = "", parent: str | None = None
    ) -> StoredPrompt:
        """Write a version, and move the label `latest` to it. A text that is stored already is not repeated.

        Args:
            name: Name of the prompt, which may be new.
            text: The text.
            person: The author, who needs the role `edit`.
            description: What the version is for, or what it changes.
            parent: Hash of the version that it was edited from.

        Raises:
            RoleError: the person may not edit.
            UsageError: the name is invalid, or belongs to the package.
            StorageError: the folder cannot be written.
        """
        person.require("edit")
        self._require_own(name)
        version = PromptVersion(
            **text.model_dump(include={"system", "messages"}),
            description=description.strip(),
            author=person.name,
            time=utc_now(),
            parent=parent,
        )
        path = self.folder / name / "versions" / f"{version.version}.toml"
        with self._locked():
            if not path.exists():
                with atomic_write(path) as file:
                    file.write(version.to_toml().encode())
            moves = _read_lines(self.folder / name / "labels.jsonl", LabelMove)
            self._move(name, moves, LATEST, version.version, person, description.strip())
        return StoredPrompt(name=name, label=LATEST, text=read_version(path, version=version.version))

    def label(self, name: str, label: str, reference: str, person: Person, reason: str = "") -> LabelMove:
        """Give a label to a version; no line is added if the version has it.

        Args:
            name: Name of the prompt.
            label: The label.
            reference: A label or hash that the version has now.
            person: Who does it, with the role `label`.
            reason: Why.

        Raises:
            RoleError: the person may not move labels.
            SourceError: there is no such prompt or version.
            UsageError: the label is invalid, or the prompt belongs to the package.
            StorageError: the folder cannot be written.
        """
        person.require("label")
        self._require_own(name)
        if not _NAME.fullmatch(label) or _HASH.fullmatch(label) or label == LATEST:
            raise UsageError(
                f"'{label}' cannot be a label",
                hint="lower-case letters, digits, '.', '_' and '-'; no hash, and not latest",
            )
        with self._locked():
            version = self.find(f"{name}@{reference}").version
            return self._move(name, self.history(name), label, version, person, reason)

    def rollback(self, name: str, label: str, person: Person, reason: str = "") -> LabelMove:
        """Give a label back to the version that had it before; repeated, it goes further back.

        Raises:
            RoleError: the person may not move labels.
            SourceError: there is no such prompt or label.
            UsageError: the label has been on one version only, or the prompt belongs to the package.
            StorageError: the folder cannot be written.
        """
        person.require("label")
        self._require_own(name)
        with self._locked():
            moves = self.history(name)
            versions = _versions_before(moves, label)
            if not versions:
                raise SourceError(f"{name} has no label '{label}'")
            if len(versions) == 1 or label == LATEST:
                raise UsageError(f"{name}@{label} cannot be rolled back: there is no earlier version")
            return self._move(name, moves, label, versions[-2], person, reason, rollback=True)

    def add_score(self, name: str, score: PromptScore, person: Person) -> None:
        """Append the score of a version, of the folder or of the package.

        Raises:
            RoleError: the person may not edit.
            SourceError: there is no such prompt or version.
            StorageError: the folder cannot be written.
        """
        person.require("edit")
        self._read(name, self._complete(name, score.version))
        make_folder(self.folder / name)
        with self._locked(), ResumableJsonl(self.folder / name / "scores.jsonl") as file:
            file.append([encode_row(score.model_dump(mode="json"))])

    def _move(
        self,
        name: str,
        moves: list[LabelMove],
        label: str,
        version: str,
        person: Person,
        reason: str,
        *,
        rollback: bool = False,
    ) -> LabelMove:
        earlier = [move for move in moves if move.label == label]
        if earlier and earlier[-1].version == version:
            return earlier[-1]
        move = LabelMove(
            time=utc_now(),
            person=person.name,
            label=label,
            version=version,
            previous=earlier[-1].version if earlier else None,
            reason=" ".join(reason.split())[:_MAX_REASON],
            rollback=rollback,
        )
        with ResumableJsonl(self.folder / name / "labels.jsonl") as file:
            file.append([encode_row(move.model_dump(mode="json"))])
        return move

    def _read(self, name: str, version: str) -> PromptVersion:
        if self.is_packaged(name) and version == _packaged()[name].version:
            return _packaged()[name]
        return read_version(self.folder / name / "versions" / f"{version}.toml", version=version)

    def _complete(self, name: str, digits: str) -> str:
        """Return the only hash of a prompt that begins with these digits."""
        if self.is_packaged(name):
            hashes = [_packaged()[name].version]
        else:
            hashes = [path.stem for path in self._known(name).joinpath("versions").glob("*.toml")]
        found = sorted(each for each in hashes if each.startswith(digits))
        if not found:
            raise SourceError(f"{name} has no version {short_version(digits)}")
        if len(found) > 1:
            raise UsageError(f"{name} has {len(found)} versions {digits}", hint="give more digits")
        return found[0]

    def _known(self, name: str) -> Path:
        """Return the folder of a prompt; SourceError if there is none."""
        if self.is_packaged(name) or (_NAME.fullmatch(name) and (self.folder / name / "versions").is_dir()):
            return self.folder / name
        near = get_close_matches(name, self.names(), n=1)
        raise SourceError(
            f"no prompt '{name}'",
            hint=f"did you mean {near[0]}?" if near else f"prompts: {', '.join(self.names())}",
        )

    def _require_own(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' cannot be the name of a prompt",
                hint="lower-case letters, digits, '.', '_' and '-', at most 64",
            )
        if self.is_packaged(name):
            raise UsageError(
                f"{name} belongs to the package and cannot be changed",
                hint=f"copy it: meditron prompts add my-{name} --from {name}",
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait until no other process or thread writes to the folder."""
        with open_lock_file(self.folder / ".lock") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield


def _versions_before(moves: list[LabelMove], label: str) -> list[str]:
    """Return the versions that a label could go back to, oldest first, and its present one as the last."""
    versions: list[str] = []
    for move in moves:
        if move.label != label:
            continue
        if move.rollback:
            versions.pop()
        else:
            versions.append(move.version)
    return versions


def _read_lines(path: Path, kind: type[_Line]) -> list[_Line]:
    """Return the lines of a history; one that a killed process left incomplete is left out."""
    records = []
    for number, line in enumerate(ResumableJsonl(path).lines, start=1):
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            _, problem = first_problem(error)
            raise InputError(path, problem, place=f"line {number}") from error
    return records


@cache
def _packaged() -> Mapping[str, PromptVersion]:
    return {path.stem: read_version(path) for path in sorted(_PACKAGED.glob("*.toml"))}


def utc_now() -> str:
    """Return the time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
