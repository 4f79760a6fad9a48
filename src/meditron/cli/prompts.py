"""`meditron prompts`: versions, labels and scores of stored prompts."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
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
    from meditron.store.prompt_text import PromptText
    from meditron.store.prompts import LabelMove, PromptStore, StoredPrompt

__all__ = ["PROMPTS", "open_prompts"]

_PEOPLE = Group("People", sort_key=1)
_As = Annotated[ActingAs, Parameter(group=_PEOPLE)]
_People = Annotated[PeopleFile, Parameter(group=_PEOPLE)]
_Reference = Annotated[
    str,
    Parameter(help="NAME, NAME@LABEL or NAME@HASH. A name alone stands for production, or else for latest."),
]
_Name = Annotated[str, Parameter(help="Name of the prompt.")]
_System = Annotated[str | None, Parameter(help="System text.")]
_File = Annotated[
    Path | None, Parameter(name="--file", help="File of a prompt (.toml), as export writes it.")
]
_Description = Annotated[str, Parameter(help="What the version is for, or what it changes.")]
_Reason = Annotated[str, Parameter(help="Why the label moves; recorded in its history.")]


def open_prompts(folder: Path | None) -> "PromptStore":
    """Return the store of a folder, by default that of the user."""
    from meditron.store.files import data_folder
    from meditron.store.prompts import PromptStore

    return PromptStore(data_folder() / "prompts" if folder is None else folder)


def list_prompts(*, prompts: PromptsFolder = None, as_json: Json = False) -> None:
    """List all prompts with their labels.

    For example:

        meditron prompts list
    """
    from meditron.report.terminal import print_table
    from meditron.store.prompt_text import short_version

    store = open_prompts(prompts)
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "labels": store.labels(name),
            "versions": len(store.versions(name)),
            "packaged": store.is_packaged(name),
            "description": store.find(name).text.description,
        }
        for name in store.names()
    ]
    if as_json:
        print_json({"prompts": entries})
        return
    rows = [
        [
            entry["name"],
            ", ".join(f"{label} {short_version(version)}" for label, version in entry["labels"].items()),
            entry["versions"],
            entry["description"],
        ]
        for entry in entries
    ]
    print_table(["Prompt", "Labels", "Versions", "Description"], rows, answer=True)


def show_prompt(prompt: _Reference, /, *, prompts: PromptsFolder = None, as_json: Json = False) -> None:
    """Show the text of a prompt.

    For example:

        meditron prompts show one-shot-medical
    """
    found = open_prompts(prompts).find(prompt)
    if as_json:
        print_json(_prompt_fields(found))
        return
    _print(found.text.as_text())
    label = f" ({found.label})" if found.label else ""
    written = f", written by {found.text.author}, {found.text.time}" if found.text.author else ""
    info(f"{found.id}{label}{written}")
    if found.text.variables:
        info(f"variables: {', '.join(found.text.variables)}")


def add_prompt(
    name: _Name,
    /,
    *,
    system: _System = None,
    file: _File = None,
    source: Annotated[
        str | None, Parameter(name="--from", help="Stored prompt to copy: NAME, NAME@LABEL or NAME@HASH.")
    ] = None,
    description: _Description = "",
    prompts: PromptsFolder = None,
    person: _As = None,
    people: _People = None,
    as_json: Json = False,
) -> None:
    """Add a prompt. {{NAME}} in its text is a variable, whose value each use gives.

    For example:

        meditron prompts add triage --system "You advise {{audience}} on how urgent a complaint is."
    """
    store = open_prompts(prompts)
    if name in store.names():
        raise UsageError(f"there is a prompt '{name}'", hint=f"meditron prompts edit {name}")
    origin = store.find(source) if source else None
    text = _given_text(origin.text.text if origin else None, system, file)
    if text is None:
        raise UsageError("a prompt needs a text", hint="--system TEXT, --file FILE or --from PROMPT")
    parent = origin.version if origin else None
    added = store.add(name, text, acting_person(person, people), description=description, parent=parent)
    _print_added(added, as_json=as_json)


def edit_prompt(
    prompt: _Reference,
    /,
    *,
    system: _System = None,
    file: _File = None,
    description: _Description = "",
    prompts: PromptsFolder = None,
    person: _As = None,
    people: _People = None,
    as_json: Json = False,
) -> None:
    """Write a new version of a prompt; the old one stays, and no label except latest moves.

    --system replaces the system text and keeps the messages. Without --system and --file, the editor of
    $VISUAL or $EDITOR opens the text.

    For example:

        meditron prompts edit triage --system "You advise {{audience}}. Ask before you answer."
    """
    store = open_prompts(prompts)
    origin = store.find(prompt)
    acting = acting_person(person, people)
    acting.require("edit")  # before the editor opens
    text = _given_text(origin.text.text, system, file) if system or file else _edited_text(origin)
    if text is None or text.version == origin.version:
        raise UsageError(f"the text is that of {origin.id}; nothing was written")
    added = store.add(origin.name, text, acting, description=description, parent=origin.version)
    _print_added(added, as_json=as_json)


def diff_prompts(
    old: _Reference,
    new: Annotated[
        str | None, Parameter(help="The other version; by default OLD is compared with its parent.")
    ] = None,
    /,
    *,
    prompts: PromptsFolder = None,
    as_json: Json = False,
) -> None:
    """Show the difference of two versions.

    For example:

        meditron prompts diff triage@production triage@latest
    """
    from meditron.store.prompt_text import difference

    store = open_prompts(prompts)
    first = store.find(old)
    if new is None:
        if first.text.parent is None:
            raise UsageError(f"{first.id} has no parent", hint="name a second version")
        first, second = store.find(f"{first.name}@{first.text.parent}"), first
    else:
        second = store.find(new)
    lines = difference(first.text, second.text)
    if as_json:
        print_json({"old": first.id, "new": second.id, "lines": lines})
    else:
        _print("\n".join(lines) or "the texts are equal")


def label_prompt(
    name: _Name,
    label: Annotated[str, Parameter(help="The label, such as production.")],
    version: Annotated[str, Parameter(help="Hash of the version, or another label that it has.")],
    /,
    *,
    reason: _Reason = "",
    prompts: PromptsFolder = None,
    person: _As = None,
    people: _People = None,
    as_json: Json = False,
) -> None:
    """Give a label to a version. The history of labels keeps every move.

    For example:

        meditron prompts label triage production latest --reason "better on the triage questions"
    """
    store = open_prompts(prompts)
    move = store.label(name, label, version, acting_person(person, people), reason)
    _print_move(name, move, store, as_json=as_json)


def rollback_prompt(
    name: _Name,
    label: Annotated[str, Parameter(help="The label.")] = "production",
    /,
    *,
    reason: _Reason = "",
    prompts: PromptsFolder = None,
    person: _As = None,
    people: _People = None,
    as_json: Json = False,
) -> None:
    """Give a label back to the version that had it before.

    For example:

        meditron prompts rollback triage production --reason "too many emergencies"
    """
    store = open_prompts(prompts)
    move = store.rollback(name, label, acting_person(person, people), reason)
    _print_move(name, move, store, as_json=as_json)


def show_history(name: _Name, /, *, prompts: PromptsFolder = None, as_json: Json = False) -> None:
    """List every move of a prompt's labels.

    For example:

        meditron prompts history triage
    """
    from meditron.report.terminal import print_table
    from meditron.store.prompt_text import short_version

    moves = open_prompts(prompts).history(name)
    if as_json:
        print_json({"name": name, "moves": [move.model_dump(mode="json") for move in moves]})
        return
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
    print_table(["Time (UTC)", "Person", "Label", "Version", "Before", "Reason"], rows, answer=True)


def score_prompt(
    prompt: _Reference,
    result: Annotated[
        Path | None,
        Parameter(help="Output of evaluate --json with this version as its --system-prompt, to record."),
    ] = None,
    /,
    *,
    prompts: PromptsFolder = None,
    person: _As = None,
    people: _People = None,
    as_json: Json = False,
) -> None:
    """List the scores of a prompt's versions, or record one from the output of an evaluation.

    For example:

        meditron prompts score triage result.json
    """
    from meditron.report.terminal import print_table
    from meditron.store.files import read_json
    from meditron.store.prompt_scores import score_of_result
    from meditron.store.prompt_text import short_version

    store = open_prompts(prompts)
    found = store.find(prompt)
    if result is not None:
        acting = acting_person(person, people)
        score = score_of_result(read_json(result, strict=True), found, acting.name, place=result)
        store.add_score(found.name, score, acting)
    scores = store.scores(found.name)
    if as_json:
        print_json({"name": found.name, "scores": [score.model_dump(mode="json") for score in scores]})
        return
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
    print_table(headers, rows, answer=True)


def export_prompt(
    prompt: _Reference,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="File to write; by default stdout.")] = None,
    prompts: PromptsFolder = None,
    as_json: Json = False,
) -> None:
    """Write a version as a file that add --file reads; with --json all versions, labels and scores.

    For example:

        meditron prompts export one-shot-medical --out my-prompt.toml
    """
    from meditron.store.files import atomic_write

    store = open_prompts(prompts)
    found = store.find(prompt)
    if out is not None:
        with atomic_write(out) as file:
            file.write(found.text.to_toml().encode())
        info(f"{found.id}: {out}")
    if as_json:
        name = found.name
        versions = [
            {"version": each.version, **each.model_dump(mode="json")} for each in store.versions(name)
        ]
        moves = [move.model_dump(mode="json") for move in store.history(name)]
        scores = [score.model_dump(mode="json") for score in store.scores(name)]
        print_json(
            {
                "name": name,
                "labels": store.labels(name),
                "versions": versions,
                "moves": moves,
                "scores": scores,
            }
        )
    elif out is None:
        _print(found.text.to_toml())


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


def _print(text: str) -> None:
    sys.stdout.write(sanitize_terminal(text.rstrip("\n")) + "\n")


def _prompt_fields(found: "StoredPrompt") -> dict[str, Any]:
    return {
        "name": found.name,
        "label": found.label,
        "version": found.version,
        "variables": list(found.text.variables),
        **found.text.model_dump(mode="json"),
    }


def _print_added(added: "StoredPrompt", *, as_json: bool) -> None:
    if as_json:
        print_json(_prompt_fields(added))
    else:
        _print(added.id)


def _print_move(name: str, move: "LabelMove", store: "PromptStore", *, as_json: bool) -> None:
    from meditron.serve.audit import AUDIT_FILE, AuditLog, label_event

    # The folder of a server's data has an audit log, which records every move of a label.
    if (store.folder.parent / AUDIT_FILE).exists():
        AuditLog(store.folder.parent).record("label", **label_event(name, move))
    if as_json:
        print_json({"name": name, **move.model_dump(mode="json")})
    else:
        _print(f"{name}@{move.label}: {move.version}")


def _given_text(base: "PromptText | None", system: str | None, file: Path | None) -> "PromptText | None":
    """Return the text that the flags describe; None if they describe none."""
    from meditron.store.prompt_text import PromptText, read_version

    if system is not None and file is not None:
        raise UsageError("--system and --file exclude each other")
    if file is not None:
        return read_version(file).text
    if system is None:
        return base
    return PromptText.checked({"system": system, "messages": base.messages if base else ()})


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
