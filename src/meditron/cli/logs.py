"""`meditron logs`: the request log and the audit log of the server."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from meditron.cli.options import (
    ActingAs,
    DataFolder,
    Json,
    PromptsFolder,
    acting_person,
    parse_pairs,
    print_json,
)
from meditron.core.console import info, sanitize_terminal
from meditron.core.errors import MeditronError, SourceError
from meditron.serve.log_rows import LogFilter

if TYPE_CHECKING:
    from meditron.serve.audit import AuditReport
    from meditron.store.database import Database

__all__ = ["LOGS", "open_log"]

_Id = Annotated[str, Parameter(help="Id of the request, or the first characters of it.")]
_Limit = Annotated[int, Parameter(validator=Number(gte=1), help="Maximum number of rows.")]


_Rows = Annotated[LogFilter, Parameter(name="*", group="Rows", show_default=True)]
_ALL = LogFilter()


@contextmanager
def open_log(data: Path | None) -> "Iterator[tuple[Database, Path]]":
    """Yield the request log of a folder of data, and the folder; SourceError if there is none."""
    from meditron.serve.request_log import LOG_FILE, open_log_file
    from meditron.store.files import data_folder

    folder = data or data_folder()
    if not (folder / LOG_FILE).is_file():
        raise SourceError(f"{folder}: no request log", hint="--data names the folder of the server's data")
    with open_log_file(folder) as database:
        yield database, folder


def list_requests(
    *, rows: _Rows = _ALL, limit: _Limit = 20, data: DataFolder = None, as_json: Json = False
) -> None:
    """List requests, newest first.

    For example:

        meditron logs list --status error --since 24h
    """
    _print_rows(rows, limit, data, as_json=as_json)


def search_requests(
    words: Annotated[
        str,
        Parameter(help="Words in the stored texts, model, prompt, tags, metadata or error, as of --search."),
    ],
    /,
    *,
    rows: _Rows = _ALL,
    limit: _Limit = 20,
    data: DataFolder = None,
    as_json: Json = False,
) -> None:
    """Search all requests for words.

    For example:

        meditron logs search "sepsis lactate" --model Q4_K_M
    """
    _print_rows(replace(rows, search=f"{words} {rows.search}"), limit, data, as_json=as_json)


def show_request(request: _Id, /, *, data: DataFolder = None, as_json: Json = False) -> None:
    """Show a request with its settings, scores, replays, and texts if they are stored.

    For example:

        meditron logs show chatcmpl-5f0c
    """
    from meditron.serve.log_export import attributes_of
    from meditron.serve.log_rows import find_row, replays_of

    with open_log(data) as (database, _):
        row = find_row(database, request)
        replays = [each.id for each in replays_of(database, row.id)]
    attributes = attributes_of(row)
    if as_json:
        print_json({**attributes, "meditron.replays": replays})
        return
    texts = ("gen_ai.input.messages", "gen_ai.output.messages")
    for name, value in attributes.items():
        if name not in texts:
            _print(f"{name}: {value if isinstance(value, str | int | float) else json.dumps(value)}")
    if replays:
        _print(f"meditron.replays: {', '.join(replays)}")
    if row.messages is None:
        info("the texts were not stored: the server ran without --log-content")
    for name in texts:
        for message in attributes.get(name, ()):
            text = "\n".join(str(part.get("content", "")) for part in message["parts"])
            _print(f"\n[{message['role']}]\n{text}")


def export_requests(
    *,
    rows: _Rows = _ALL,
    format_: Annotated[
        Literal["jsonl", "csv"], Parameter(name="--format", help="JSON lines, or a CSV table.")
    ] = "jsonl",
    out: Annotated[Path | None, Parameter(help="File to write; by default stdout.")] = None,
    data: DataFolder = None,
    person: ActingAs = None,
    as_json: Json = False,
) -> None:
    """Write requests with the field names of OpenTelemetry, newest first. The audit log records it.

    With --json and --out, the number of rows is printed as JSON.

    For example:

        meditron logs export --since 7d --format csv --out week.csv
    """
    from meditron.serve.audit import AuditLog
    from meditron.serve.log_export import csv_lines, jsonl_lines
    from meditron.serve.log_rows import count_rows, read_rows
    from meditron.store.files import atomic_write

    acting = acting_person(person, None)
    with open_log(data) as (database, folder):
        count = count_rows(database, rows)
        # Before the first row is written: a reader of stdout may close it after that row.
        AuditLog(folder).record("export", person=acting.name, rows=count, format=format_)
        found = read_rows(database, rows)
        lines = csv_lines(found) if format_ == "csv" else jsonl_lines(found)
        if out is None:
            for line in lines:
                sys.stdout.write(line.decode())
        else:
            with atomic_write(out) as file:
                file.writelines(lines)
    if as_json and out is not None:
        print_json({"rows": count, "path": str(out)})
    else:
        info(f"{count:,} requests{f': {out}' if out else ''}")


def score_request(
    request: _Id,
    name: Annotated[str, Parameter(help="thumbs (-1 or 1), rating (1 to 5), or another name.")],
    value: Annotated[float, Parameter(help="The score.", allow_leading_hyphen=True)],
    /,
    *,
    data: DataFolder = None,
    person: ActingAs = None,
    as_json: Json = False,
) -> None:
    """Attach a score to a request; the same person's score of the same name is replaced.

    For example:

        meditron logs score chatcmpl-5f0c rating 4
    """
    from meditron.serve.log_rows import find_row
    from meditron.serve.request_log import add_score

    with open_log(data) as (database, _):
        row = find_row(database, request)
        add_score(database, row.id, name, value, acting_person(person, None).name)
    if as_json:
        print_json({"id": row.id, "name": name, "value": value})
    else:
        info(f"{row.id}: {name} {value:g}")


def replay_request(
    request: _Id,
    /,
    *,
    model: Annotated[
        str,
        Parameter(
            help="MODEL that answers: a stage of a run, an HF folder, a .gguf file, or a running server: "
            "api:http://host:port/v1#model."
        ),
    ],
    prompt: Annotated[
        str | None,
        Parameter(help="Stored prompt in place of the request's: NAME, NAME@LABEL or NAME@HASH."),
    ] = None,
    variable: Annotated[
        tuple[str, ...], Parameter(help="NAME=VALUE: value of a variable of the prompt; repeatable.")
    ] = (),
    prompts: PromptsFolder = None,
    data: DataFolder = None,
    person: ActingAs = None,
    as_json: Json = False,
) -> None:
    """Answer the messages of a request again, by another model or with another prompt.

    The request's texts must be stored (serve --log-content). The new answer becomes a row of the log, which
    is linked to the request.

    For example:

        meditron logs replay gen-5f0c --model runs/quickstart/quantize:Q4_K_M --prompt triage@latest
    """
    from meditron.serve.audit import AuditLog, request_event
    from meditron.serve.log_rows import find_row
    from meditron.serve.replays import answer_replay, replay_call
    from meditron.serve.request_log import add_exchanges
    from meditron.store.prompts import PromptStore

    with open_log(data) as (database, folder):
        row = find_row(database, request)
        call = replay_call(
            row,
            PromptStore(folder / "prompts" if prompts is None else prompts),
            model=model,
            person=acting_person(person, None).name,
            prompt=prompt,
            variables=parse_pairs("--variable", variable),
        )
        exchange = answer_replay(call)
        add_exchanges(database, [exchange], content=True)
        AuditLog(folder).record("request", **request_event(exchange))
    original, answer = "\n\n".join(row.answers or ()), "\n\n".join(exchange.answers)
    used = f"{call.prompt.name}@{call.prompt.version}" if call.prompt else None
    if as_json:
        fields = {"id": exchange.id, "replay_of": row.id, "model": model, "prompt": used}
        print_json({**fields, "original": original, "answer": answer})
        return
    _print(f"[{row.model}{f', {row.prompt}' if row.prompt else ''}]\n{original}\n")
    _print(f"[{model}{f', {used}' if used else ''}]\n{answer}")
    info(f"{exchange.id}, a replay of {row.id}")


def show_audit(
    *,
    verify: Annotated[
        bool, Parameter(help="Check the chain of hashes of all lines; exit code 1 if one is bad.")
    ] = False,
    head: Annotated[
        str | None,
        Parameter(help="With --verify: hash of a line, noted before, that must be in the chain."),
    ] = None,
    limit: _Limit = 20,
    data: DataFolder = None,
    as_json: Json = False,
) -> int:
    """Show the last lines of the audit log, or verify all of it.

    For example:

        meditron logs audit --verify
    """
    from meditron.serve.audit import last_events, verify_audit
    from meditron.store.files import data_folder

    folder = data or data_folder()
    if verify or head:
        report = verify_audit(folder, expected_head=head)
        _print_report(report, as_json=as_json)
        return int(not report.ok)
    events = last_events(folder, limit)
    if as_json:
        print_json({"events": events})
    for event in () if as_json else events:
        hidden = ("number", "time", "event", "previous", "sha256")
        details = " ".join(f"{key}={value}" for key, value in event.items() if key not in hidden)
        _print(f"{event['number']} {event['time']} {event['event']} {details}")
    return 0


LOGS: Mapping[str, Callable[..., int | None]] = {
    "list": list_requests,
    "search": search_requests,
    "show": show_request,
    "export": export_requests,
    "score": score_request,
    "replay": replay_request,
    "audit": show_audit,
}
"""Name of a command → its function."""


def _print(text: str) -> None:
    sys.stdout.write(sanitize_terminal(text) + "\n")


def _print_rows(rows: LogFilter, limit: int, data: Path | None, *, as_json: bool) -> None:
    from meditron.report.terminal import print_table
    from meditron.serve.log_export import attributes_of, utc_time
    from meditron.serve.log_rows import count_rows, read_rows

    with open_log(data) as (database, _):
        shown = list(read_rows(database, rows, limit=limit))
        total = count_rows(database, rows)
    if as_json:
        print_json({"total": total, "requests": [attributes_of(row) for row in shown]})
        return
    table = [
        [
            utc_time(row.started)[:19].replace("T", " "),
            row.id,
            row.model,
            f"{row.prompt_name}@{str(row.prompt_version)[:12]}" if row.prompt_name else "–",
            row.status,
            f"{row.seconds:.2f} s",
            "–" if row.input_tokens is None else row.input_tokens,
            "–" if row.output_tokens is None else row.output_tokens,
            ", ".join(f"{score.name} {score.value:g}" for score in row.scores),
            row.error or "",
        ]
        for row in shown
    ]
    headers = ["Time (UTC)", "Id", "Model", "Prompt", "Status", "Time", "Read", "Written", "Scores", "Error"]
    print_table(headers, table, answer=True)
    if total > len(shown):
        info(f"{len(shown)} of {total:,} requests; --limit shows more")


def _print_report(report: "AuditReport", *, as_json: bool) -> None:
    if as_json:
        print_json(report.as_json())
        return
    torn = f"; {report.torn_bytes} bytes of an incomplete line follow" if report.torn_bytes else ""
    _print(f"lines {report.first} to {report.head.number} are good{torn}")
    _print(f"hash of the last good line: {report.head.sha256}")
    if report.problem:
        raise MeditronError(report.problem, hint="keep the file as evidence, and compare it with a backup")
