"""Pages and API of the request log: figures, search, one request, scores, replay, export."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

from pydantic import Field
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from meditron.core.config import Config
from meditron.core.errors import SourceError, UsageError
from meditron.serve.bodies_as import read_body_as
from meditron.serve.log_export import attributes_of, csv_lines, jsonl_lines, utc_time
from meditron.serve.log_figures import CHARTS, draw_chart, log_figures
from meditron.serve.log_rows import (
    LogFilter,
    LogRow,
    count_rows,
    find_row,
    parse_moment,
    read_rows,
    replays_of,
)
from meditron.serve.pages import person_of, render_page, state_of
from meditron.serve.records import Records, records_of
from meditron.serve.replays import replay_call
from meditron.store.people import Person

__all__ = ["routes"]

_FIELDS = ("model", "prompt", "person", "endpoint", "tag", "status")
_ROWS = 50  # of a page
_MOST_ROWS = 1000  # of an API response
_SINCE = "24h"
_NEVER_STORE = {"cache-control": "no-store"}


class Score(Config):
    """A score to attach."""

    name: str
    value: float


class Replay(Config):
    """A request to repeat."""

    model: str
    prompt: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)


async def log_page(request: Request) -> Response:
    """Return the page of figures and requests."""
    records, query = _records_for_admin(request), request.query_params
    now = time.time()
    start = parse_moment(query.get("since") or _SINCE, now)
    end = parse_moment(query["until"], now) if query.get("until") else now
    if start >= end:
        raise UsageError("since must be before until")
    rows, before = _filter(query, start, end), _number(query, "before")

    def context() -> dict[str, Any]:
        shown = list(read_rows(records.reader, rows, limit=_ROWS, before=before))
        figures = log_figures(records.reader, _filter(query, None, None), start=start, end=end)
        return {"rows": shown, "figures": figures, "total": count_rows(records.reader, rows)}

    given = {key: query.get(key, "") for key in ("q", "since", "until", *_FIELDS)}
    page: dict[str, Any] = await asyncio.to_thread(context)
    charts = urlencode(
        {**{k: v for k, v in given.items() if v}, "start": f"{start:.3f}", "end": f"{end:.3f}"}
    )
    last = page["rows"][-1].number if len(page["rows"]) == _ROWS else None
    return render_page(
        request,
        "logs.html",
        title="Request log",
        given=given,
        charts=[(name, title, f"/logs/charts/{name}.svg?{charts}") for name, title in CHARTS.items()],
        older=urlencode({**given, "before": last}) if last else "",
        export=urlencode({k: v for k, v in given.items() if v} | {"since": given["since"] or _SINCE}),
        lost=records.log.lost,
        problem=records.log.problem,
        stores_content=records.log.content,
        utc_time=utc_time,
        **page,
    )


async def chart(request: Request) -> Response:
    """Return a chart as a picture."""
    records, query, name = _records_for_admin(request), request.query_params, request.path_params["name"]
    if name not in CHARTS:
        raise SourceError(f"no chart '{name}'", hint=f"charts: {', '.join(CHARTS)}")
    start, end = _moment(query, "start"), _moment(query, "end")
    if not start < end:
        raise UsageError("start must be before end")

    def svg() -> str:
        figures = log_figures(records.reader, _filter(query, None, None), start=start, end=end)
        return draw_chart(figures, name)

    text = await asyncio.to_thread(svg)
    return Response(text, media_type="image/svg+xml", headers=_NEVER_STORE)


async def request_page(request: Request) -> Response:
    """Return the page of one request."""
    records = _records_for_admin(request)
    row, replays = await asyncio.to_thread(_row_and_replays, records, request.path_params["id"])
    original = None
    if row.replay_of:
        original = await asyncio.to_thread(_find_or_none, records, row.replay_of)
    attributes = attributes_of(row)
    for name in ("gen_ai.input.messages", "gen_ai.output.messages", "meditron.scores"):
        attributes.pop(name, None)
    return render_page(
        request,
        "log_entry.html",
        title=row.id,
        row=row,
        attributes=attributes,
        replays=replays,
        original=original,
        models=[model.id for model in state_of(request).models.list_models()],
        prompts=await asyncio.to_thread(records.prompts.names),
        utc_time=utc_time,
    )


async def export(request: Request) -> Response:
    """Return the matching requests as a file."""
    records, query = _records_for_admin(request), request.query_params
    form = query.get("format", "jsonl")
    if form not in ("jsonl", "csv"):
        raise UsageError(f"format '{form}': it is jsonl or csv")
    now = time.time()
    start = parse_moment(query["since"], now) if query.get("since") else None
    end = parse_moment(query["until"], now) if query.get("until") else None
    rows = _filter(query, start, end)
    count = await asyncio.to_thread(count_rows, records.reader, rows)
    records.audit_event("export", person=person_of(request).name, rows=count, format=form)
    found = read_rows(records.reader, rows)
    lines = csv_lines(found) if form == "csv" else jsonl_lines(found)
    return StreamingResponse(
        _in_thread(lines),
        media_type="text/csv; charset=utf-8" if form == "csv" else "application/jsonl",
        headers={**_NEVER_STORE, "content-disposition": f'attachment; filename="requests.{form}"'},
    )


async def list_json(request: Request) -> Response:
    """Return the matching requests, newest first."""
    records, query = _records_for_admin(request), request.query_params
    now = time.time()
    start = parse_moment(query["since"], now) if query.get("since") else None
    end = parse_moment(query["until"], now) if query.get("until") else None
    limit = _number(query, "limit") or _ROWS
    if not 1 <= limit <= _MOST_ROWS:
        raise UsageError(f"limit must be from 1 to {_MOST_ROWS}, got {limit}")
    rows, before = _filter(query, start, end), _number(query, "before")
    shown = await asyncio.to_thread(lambda: list(read_rows(records.reader, rows, limit=limit, before=before)))
    total = await asyncio.to_thread(count_rows, records.reader, rows)
    last = shown[-1].number if len(shown) == limit else None
    return JSONResponse(
        {"total": total, "before": last, "requests": [attributes_of(row) for row in shown]},
        headers=_NEVER_STORE,
    )


async def request_json(request: Request) -> Response:
    """Return one request."""
    records = _records_for_admin(request)
    row, replays = await asyncio.to_thread(_row_and_replays, records, request.path_params["id"])
    fields = {**attributes_of(row), "meditron.replays": [each.id for each in replays]}
    return JSONResponse(fields, headers=_NEVER_STORE)


async def score(request: Request) -> Response:
    """Attach a score to a request: one's own, or any for an administrator."""
    body, person = await read_body_as(request, Score), person_of(request)
    records = records_of(state_of(request))

    def work() -> str:
        records.log.flush()
        row = _own_row(records, request.path_params["id"], person)
        records.log.score(row.id, body.name, body.value, person.name)
        return row.id

    found = await asyncio.to_thread(work)
    return JSONResponse({"id": found, "name": body.name, "value": body.value})


async def replay(request: Request) -> Response:
    """Repeat a request; the answer is complete when it is returned."""
    body, records = await read_body_as(request, Replay), _records_for_admin(request)
    row = await asyncio.to_thread(find_row, records.reader, request.path_params["id"])
    call = await asyncio.to_thread(
        lambda: replay_call(
            row,
            records.prompts,
            model=body.model,
            person=person_of(request).name,
            prompt=body.prompt or None,
            variables=body.variables,
        )
    )
    pieces = [piece async for piece in state_of(request).models.stream(call)]
    text = "".join(piece.text for piece in pieces)
    await asyncio.to_thread(records.log.flush)
    return JSONResponse(
        {
            "id": call.id,
            "replay_of": row.id,
            "model": body.model,
            "prompt": f"{call.prompt.name}@{call.prompt.version}" if call.prompt else None,
            "original": "\n\n".join(row.answers or ()),
            "answer": text,
            "next": f"/logs/{row.id}",
        },
        headers=_NEVER_STORE,
    )


routes: list[BaseRoute] = [
    Route("/logs", log_page),
    Route("/logs/export", export),
    Route("/logs/charts/{name}.svg", chart),
    Route("/logs/{id}", request_page),
    Route("/api/logs", list_json),
    Route("/api/logs/{id}", request_json),
    Route("/api/logs/{id}/scores", score, methods=["POST"]),
    Route("/api/logs/{id}/replay", replay, methods=["POST"]),
]


def _records_for_admin(request: Request) -> Records:
    person_of(request).require("admin")
    return records_of(state_of(request))


def _filter(query: QueryParams, start: float | None, end: float | None) -> LogFilter:
    fields: dict[str, Any] = {name: query.get(name, "").strip() for name in _FIELDS}
    return LogFilter(search=query.get("q", ""), since=start, until=end, **fields)


def _number(query: QueryParams, name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise UsageError(f"{name} must be a number, got {text!r:.40}")
    return int(text)


def _moment(query: QueryParams, name: str) -> float:
    try:
        moment = float(query.get(name, ""))
    except ValueError as error:
        raise UsageError(f"{name} must be a time in seconds") from error
    if not 0 <= moment < 1e11:
        raise UsageError(f"{name} must be a time in seconds")
    return moment


def _row_and_replays(records: Records, request: str) -> tuple[LogRow, list[LogRow]]:
    row = find_row(records.reader, request)
    return row, replays_of(records.reader, row.id)


def _find_or_none(records: Records, request: str) -> LogRow | None:
    try:
        return find_row(records.reader, request)
    except SourceError:  # deleted by the retention time
        return None


def _own_row(records: Records, request: str, person: Person) -> LogRow:
    """Return a request that a person may score; others are as unknown as ids that do not exist."""
    if "admin" in person.roles:
        return find_row(records.reader, request)
    person.require("chat")
    row = find_row(records.reader, request)
    if row.person != person.name or row.id != request:
        raise SourceError(f"no request '{request}' in the log")
    return row


async def _in_thread(lines: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield blocks of lines, which are read from the disk in a thread."""

    def block() -> bytes:
        return b"".join(line for _, line in zip(range(200), lines, strict=False))

    while content := await asyncio.to_thread(block):
        yield content
