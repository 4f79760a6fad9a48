"""`meditron prompts`: versions, labels and scores of stored prompts."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from meditron.cli.options import (
    ActingAs,
    Json,
    PeopleFile,
    PromptsFolder,
    acting_person,
    print_json,
)
from meditron.core.console import info, sanitize_terminal
from meditron.core.errors import MeditronError, UsageError

if TYPE_CHECKING:
    from meditron.serve.audit import EventFields
    from meditron.store.people import Person
    from meditron.store.prompt_text import PromptText
    from meditron.store.prompts import LabelMove, PromptStore, StoredPrompt

__all__ = ["PROMPTS", "open_prompts"]

_PEOPLE = Group("People", sort_key=1)
_Reference = Annotated[
    str,
    Parameter(help="NAME, NAME@LABEL or NAME@HASH. A name alone stands for production, or else for latest."),
]
_Name = Annotated[str, Parameter(help="Name of the prompt.")]
_Reason = Annotated[str, Parameter(help="Why the label moves; recorded in its history.")]


def open_prompts(folder: Path | None) -> "PromptStore":
    """Return the store of a folder, by default that of the user."""
    from meditron.store.files import data_folder
    from meditron.store.prompts import PromptStore

    return PromptStore(data_folder() / "prompts" if folder is None else folder)


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Options of all commands."""

    prompts: PromptsFolder = None
    as_json: Json = False

    @property
    def store(self) -> "PromptStore":
        """The stored prompts."""
        return open_prompts(self.prompts)

    def print(self, fields: dict[str, Any], text: str) -> None:
        """Print fields as JSON with --json, else a text."""
        if self.as_json:
            print_json(fields)
        else:
            sys.stdout.write(sanitize_terminal(text.rstrip("\n")) + "\n")

    def print_table(
        self, fields: dict[str, Any], headers: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> None:
        """Print fields as JSON with --json, else a table."""
        from meditron.report.terminal import print_table

        if self.as_json:
            print_json(fields)
        else:
            print_table(headers, rows, answer=True)


@dataclass(frozen=True, kw_only=True)
class ChangeOptions(PromptOptions):
    """Options of the commands that change prompts."""

    person: Annotated[ActingAs, Parameter(group=_PEOPLE)] = None
    people: Annotated[PeopleFile, Parameter(group=_PEOPLE)] = None

    def acting_person(self) -> "Person":
        """Return who changes the prompts; errors are those of `acting_person`."""
        return acting_person(self.person, self.people)

    def audit(self, event: str, fields: "EventFields") -> None:
        """Record a change in the audit log of the folder of data."""
        from meditron.serve.audit import audit_command

        audit_command(self.store.folder.parent, event, **fields)


@dataclass(frozen=True, kw_only=True)
class TextOptions(ChangeOptions):
    """Options of the commands that write a version."""

    system: Annotated[str | None, Parameter(help="System text.")] = None
    file: Annotated[
        Path | None, Parameter(name="--file", help="File of a prompt (.toml), as export writes it.")
    ] = None
    description: Annotated[str, Parameter(help="What the version is for, or what it changes.")] = ""

    def text(self, base: "PromptText | None") -> "PromptText | None":
        """Return the text that the options describe, in which `base` gives the rest; None if there is none.

        Raises:
            UsageError: both options are given, or the text is no prompt.
            SourceError, InputError: as of `read_version`.
        """
        from meditron.store.prompt_text import PromptText, read_version

        if self.system is not None and self.file is not None:
            raise UsageError("--system and --file exclude each other")
        if self.file is not None:
            return read_version(self.file).text
        if self.system is None:
            return base
        return PromptText.checked({"system": self.system, "messages": base.messages if base else ()})

    def write(self, name: str, text: "PromptText", person: "Person", parent: str | None) -> None:
        """Store a version and print its id; errors are those of `PromptStore.add`."""
        added = self.store.add(name, text, person, description=self.description, parent=parent)
        self.audit("prompt", {"person": person.name, "prompt": name, "version": added.version})
        self.print(added.as_json(), added.id)


_Options = Annotated[PromptOptions, Parameter(name="*")]
_ChangeOptions = Annotated[ChangeOptions, Parameter(name="*")]
_TextOptions = Annotated[TextOptions, Parameter(name="*")]
_NONE, _NO_CHANGE, _NO_TEXT = PromptOptions(), ChangeOptions(), TextOptions()


def list_prompts(*, options: _Options = _NONE) -> None:
    """List all prompts with their labels.

    For example:

        meditron prompts list
    """
    from meditron.store.prompt_text import short_version

    entries = options.store.summaries()
    rows = [
        [
            entry["name"],
            ", ".join(f"{label} {short_version(version)}" for label, version in entry["labels"].items()),
            entry["versions"],
            entry["description"],
        ]
        for entry in entries
    ]
    options.print_table({"prompts": entries}, ["Prompt", "Labels", "Versions", "Description"], rows)


def show_prompt(prompt: _Reference, /, *, options: _Options = _NONE) -> None:
    """Show the text of a prompt.

    For example:

        meditron prompts show one-shot-medical
    """
    found = options.store.find(prompt)
    options.print(found.as_json(), found.text.as_text())
    if options.as_json:
        return
    label = f" ({found.label})" if found.label else ""
    written = f", written by {found.text.author}, {found.text.time}" if found.text.author else ""
    info(f"{found.id}{label}{written}")
    if found.text.variables:
        info(f"variables: {', '.join(found.text.variables)}")


def add_prompt(
    name: _Name,
    /,
    *,
    source: Annotated[
        str | None, Parameter(name="--from", help="Stored prompt to copy: NAME, NAME@LABEL or NAME@HASH.")
    ] = None,
    options: _TextOptions = _NO_TEXT,
) -> None:
    """Add a prompt. {{NAME}} in its text is a variable, whose value each use gives.

    For example:

        meditron prompts add triage --system "You advise {{audience}} on how urgent a complaint is."
    """
    store = options.store
    if name in store.names():
        raise UsageError(f"there is a prompt '{name}'", hint=f"meditron prompts edit {name}")
    origin = store.find(source) if source else None
    text = options.text(origin.text.text if origin else None)
    if text is None:
        raise UsageError("a prompt needs a text", hint="--system TEXT, --file FILE or --from PROMPT")
    options.write(name, text, options.acting_person(), origin.version if origin else None)


def edit_prompt(
    prompt: _Reference,
    /,
    *,
    options: _TextOptions = _NO_TEXT,
) -> None:
    """Write a new version of a prompt; the old one stays, and no label except latest moves.

    --system replaces the system text and keeps the messages. Without --system and --file, the editor of
    $VISUAL or $EDITOR opens the text.

    For example:

        meditron prompts edit triage --system "You advise {{audience}}. Ask before you answer."
    """
    origin, acting = options.store.find(prompt), options.acting_person()
    acting.require("edit")  # before the editor opens
    text = options.text(None if options.system is None else origin.text.text) or _edited_text(origin)
    if text.version == origin.version:
        raise UsageError(f"the text is that of {origin.id}; nothing was written")
    options.write(origin.name, text, acting, origin.version)


def diff_prompts(
    old: _Reference,
    new: Annotated[
        str | None, Parameter(help="The other version; by default OLD is compared with its parent.")
    ] = None,
    /,
    *,
    options: _Options = _NONE,
) -> None:
    """Show the difference of two versions.

    For example:

        meditron prompts diff triage@production triage@latest
    """
    from meditron.store.prompt_text import difference

    store = options.store
    first = store.find(old)
    if new is None:
        if first.text.parent is None:
            raise UsageError(f"{first.id} has no parent", hint="name a second version")
        first, second = store.find(f"{first.name}@{first.text.parent}"), first
    else:
        second = store.find(new)
    lines = difference(first.text, second.text)
    fields = {"old": first.id, "new": second.id, "lines": lines}
    options.print(fields, "\n".join(lines) or "the texts are equal")


def label_prompt(
    name: _Name,
    label: Annotated[str, Parameter(help="The label, such as production.")],
    version: Annotated[str, Parameter(help="Hash of the version, or another label that it has.")],
    /,
    *,
    reason: _Reason = "",
    options: _ChangeOptions = _NO_CHANGE,
) -> None:
    """Give a label to a version. The history of labels keeps every move.

    For example:

        meditron prompts label triage production latest --reason "better on the triage questions"
    """
    move = options.store.label(name, label, version, options.acting_person(), reason)
    _print_move(name, move, options)


def rollback_prompt(
    name: _Name,
    label: Annotated[str, Parameter(help="The label.")] = "production",
    /,
    *,
    reason: _Reason = "",
    options: _ChangeOptions = _NO_CHANGE,
) -> None:
    """Give a label back to the version that had it before.

    For example:

        meditron prompts rollback triage production --reason "too many emergencies"
    """
    move = options.store.rollback(name, label, options.acting_person(), reason)
    _print_move(name, move, options)


def show_history(name: _Name, /, *, options: _Options = _NONE) -> None:
    """List every move of a prompt's labels.

    For example:

        meditron prompts history triage
    """
    from meditron.store.prompt_text import short_version

    moves = options.store.history(name)
    rows = [
        [
            move.time[:19],
            move.person,
            move.label,
            short_version(move.version),
            short_version(move.previous or "–"),
            f"rollback: {move.reason}" if move.rollback else move.reason,
        ]
        for move in moves
    ]
    fields = {"name": name, "moves": [move.model_dump(mode="json") for move in moves]}
    options.print_table(fields, ["Time (UTC)", "Person", "Label", "Version", "Before", "Reason"], rows)


def score_prompt(
    prompt: _Reference,
    result: Annotated[
        Path | None,
        Parameter(help="Output of evaluate --json with this version as its --system-prompt, to record."),
    ] = None,
    /,
    *,
    options: _ChangeOptions = _NO_CHANGE,
) -> None:
    """List the scores of a prompt's versions, or record one from the output of an evaluation.

    For example:

        meditron prompts score triage result.json
    """
    from meditron.store.files import read_json
    from meditron.store.prompt_scores import score_of_result
    from meditron.store.prompt_text import short_version

    store = options.store
    found = store.find(prompt)
    if result is not None:
        acting = options.acting_person()
        score = score_of_result(read_json(result, strict=True), found, acting.name, place=result)
        store.add_score(found.name, score, acting)
    scores = store.scores(found.name)
    rows = [
        [
            short_version(score.version),
            score.task,
            score.model,
            score.method,
            score.n,
            f"{100 * score.accuracy:.1f} %",
            "–"
            if score.interval is None
            else f"[{100 * score.interval[0]:.1f}, {100 * score.interval[1]:.1f}]",
            score.time[:10],
        ]
        for score in scores
    ]
    headers = ["Version", "Task", "Model", "Method", "Questions", "Accuracy", "95 %", "Date"]
    fields = {"name": found.name, "scores": [score.model_dump(mode="json") for score in scores]}
    options.print_table(fields, headers, rows)


def export_prompt(
    prompt: _Reference,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="File to write; by default stdout.")] = None,
    options: _Options = _NONE,
) -> None:
    """Write a version as a file that add --file reads; with --json all versions, labels and scores.

    For example:

        meditron prompts export one-shot-medical --out my-prompt.toml
    """
    from meditron.store.files import atomic_write

    store = options.store
    found = store.find(prompt)
    if out is not None:
        with atomic_write(out) as file:
            file.write(found.text.to_toml().encode())
        info(f"{found.id}: {out}")
    if options.as_json or out is None:
        name = found.name
        versions = [
            {"version": each.version, **each.model_dump(mode="json")} for each in store.versions(name)
        ]
        fields = {
            "name": name,
            "labels": store.labels(name),
            "versions": versions,
            "moves": [move.model_dump(mode="json") for move in store.history(name)],
            "scores": [score.model_dump(mode="json") for score in store.scores(name)],
        }
        options.print(fields, found.text.to_toml())


PROMPTS: Mapping[str, Callable[..., int | None]] = {
    "list": list_prompts,
    "show": show_prompt,
    "add": add_prompt,
    "edit": edit_prompt,
    "diff": diff_prompts,
    "label": label_prompt,
    "rollback": rollback_prompt,
    "history": show_history,
    "score": score_prompt,
    "export": export_prompt,
}
"""Name of a command → its function."""


def _print_move(name: str, move: "LabelMove", options: ChangeOptions) -> None:
    from meditron.serve.audit import label_event

    options.audit("label", label_event(name, move))
    fields = {"name": name, **move.model_dump(mode="json")}
    options.print(fields, f"{name}@{move.label}: {move.version}")


def _edited_text(origin: "StoredPrompt") -> "PromptText":
    """Let the user edit a prompt's text in the editor of $VISUAL or $EDITOR."""
    from meditron.store.prompt_text import PromptVersion, read_version

    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise UsageError("there is no editor", hint="set $EDITOR, or give --system TEXT or --file FILE")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{origin.name}.toml"
        path.write_text(PromptVersion(**origin.text.text.model_dump()).to_toml(), encoding="utf-8")
        code = subprocess.run([*shlex.split(editor), path], check=False).returncode
        if code:
            raise MeditronError(f"the editor ended with exit code {code}; nothing was written")
        return read_version(path).text
