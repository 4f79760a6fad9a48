"""Pages and API of the request log: figures, search, one request, scores, replay, export."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from urllib.parse import urlencode

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from meditron.core.config import Config
from meditron.core.errors import SourceError, UsageError
from meditron.serve.bodies_as import read_body_as, with_body
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
from meditron.serve.state import ChatCall
from meditron.store.people import Person

__all__ = ["routes"]

_FIELDS = ("model", "prompt", "person", "endpoint", "tag", "status", "since", "until")
_ROWS = 50  # of a page
_MOST_ROWS = 1000  # of an API response
_SINCE = "24h"


class Score(Config):
    """A score to attach."""

    name: str
    value: float


class Replay(Config):
    """A request to repeat."""

    model: str
    prompt: str | None = None
    variables: dict[str, str] = Field(default_factory=dict)


def log_page(request: Request) -> Response:
    """Return the page of figures and requests."""
    records, query = _records_for_admin(request), request.query_params
    start, end = _period(query)
    rows, before = replace(_filter(query), since=query.get("since") or _SINCE), _number(query, "before")
    shown = list(read_rows(records.reader, rows, limit=_ROWS, before=before))
    given = {key: query.get(key, "") for key in ("q", *_FIELDS)}
    wanted = {key: value for key, value in given.items() if value}
    charts = urlencode(wanted | {"since": utc_time(start), "until": utc_time(end)})
    return render_page(
        request,
        "logs.html",
        title="Request log",
        given=given,
        rows=shown,
        total=count_rows(records.reader, rows),
        figures=log_figures(records.reader, rows, start=start, end=end),
        charts=[(name, title, f"/logs/charts/{name}.svg?{charts}") for name, title in CHARTS.items()],
        older=urlencode({**given, "before": shown[-1].number}) if len(shown) == _ROWS else "",
        export=urlencode(wanted | {"since": rows.since}),
        lost=records.log.lost,
        problem=records.log.problem,
        stores_content=records.log.content,
        utc_time=utc_time,
    )


def chart(request: Request) -> Response:
    """Return a chart as a picture."""
    records, query, name = _records_for_admin(request), request.query_params, request.path_params["name"]
    if name not in CHARTS:
        raise SourceError(f"no chart '{name}'", hint=f"charts: {', '.join(CHARTS)}")
    start, end = _period(query)
    figures = log_figures(records.reader, _filter(query), start=start, end=end)
    return Response(draw_chart(figures, name), media_type="image/svg+xml")


def request_page(request: Request) -> Response:
    """Return the page of one request."""
    records = _records_for_admin(request)
    row = find_row(records.reader, request.path_params["id"])
    attributes = attributes_of(row)
    for name in ("gen_ai.input.messages", "gen_ai.output.messages", "meditron.scores"):
        attributes.pop(name, None)
    return render_page(
        request,
        "log_entry.html",
        title=row.id,
        row=row,
        attributes=attributes,
        replays=replays_of(records.reader, row.id),
        original=_find_or_none(records, row.replay_of) if row.replay_of else None,
        models=[model.id for model in state_of(request).models.list_models()],
        prompts=records.prompts.names(),
        utc_time=utc_time,
    )


def export(request: Request) -> Response:
    """Return the matching requests as a file."""
    records, query = _records_for_admin(request), request.query_params
    form = query.get("format", "jsonl")
    if form not in ("jsonl", "csv"):
        raise UsageError(f"format '{form}': it is jsonl or csv")
    rows = _filter(query)
    count = count_rows(records.reader, rows)
    records.audit_event("export", person=person_of(request).name, rows=count, format=form)
    found = read_rows(records.reader, rows)
    return StreamingResponse(
        _blocks(csv_lines(found) if form == "csv" else jsonl_lines(found)),
        media_type="text/csv; charset=utf-8" if form == "csv" else "application/jsonl",
        headers={"content-disposition": f'attachment; filename="requests.{form}"'},
    )


def list_json(request: Request) -> Response:
    """Return the matching requests, newest first."""
    records, query = _records_for_admin(request), request.query_params
    limit = _number(query, "limit") or _ROWS
    if not 1 <= limit <= _MOST_ROWS:
        raise UsageError(f"limit must be from 1 to {_MOST_ROWS}, got {limit}")
    rows, before = _filter(query), _number(query, "before")
    shown = list(read_rows(records.reader, rows, limit=limit, before=before))
    return JSONResponse(
        {
            "total": count_rows(records.reader, rows),
            "before": shown[-1].number if len(shown) == limit else None,
            "requests": [attributes_of(row) for row in shown],
        }
    )


def request_json(request: Request) -> Response:
    """Return one request."""
    records = _records_for_admin(request)
    row = find_row(records.reader, request.path_params["id"])
    replays = [each.id for each in replays_of(records.reader, row.id)]
    return JSONResponse({**attributes_of(row), "meditron.replays": replays})


@with_body(Score)
def score(request: Request, body: Score) -> Response:
    """Attach a score to a request: one's own, or any for an administrator."""
    records, person = records_of(state_of(request)), person_of(request)
    records.log.flush()
    row = _own_row(records, request.path_params["id"], person)
    records.log.score(row.id, body.name, body.value, person.name)
    return JSONResponse({"id": row.id, "name": body.name, "value": body.value})


async def replay(request: Request) -> Response:
    """Repeat a request; the answer is complete when it is returned."""
    body, records = await read_body_as(request, Replay), _records_for_admin(request)

    def prepare() -> tuple[LogRow, ChatCall]:
        row = find_row(records.reader, request.path_params["id"])
        return row, replay_call(
            row,
            records.prompts,
            model=body.model,
            person=person_of(request).name,
            prompt=body.prompt or None,
            variables=body.variables,
        )

    row, call = await run_in_threadpool(prepare)
    text = "".join([piece.text async for piece in state_of(request).models.stream(call)])
    await run_in_threadpool(records.log.flush)
    return JSONResponse(
        {
            "id": call.id,
            "replay_of": row.id,
            "model": body.model,
            "prompt": f"{call.prompt.name}@{call.prompt.version}" if call.prompt else None,
            "original": "\n\n".join(row.answers or ()),
            "answer": text,
            "next": f"/logs/{row.id}",
        }
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


def _filter(query: QueryParams) -> LogFilter:
    return LogFilter(search=query.get("q", ""), **{name: query.get(name, "").strip() for name in _FIELDS})


def _period(query: QueryParams) -> tuple[float, float]:
    """Return the times between which figures are computed; UsageError if there are none."""
    now = time.time()
    start = parse_moment(query.get("since") or _SINCE, now)
    end = parse_moment(query["until"], now) if query.get("until") else now
    if start >= end:
        raise UsageError("since must be before until")
    return start, end


def _number(query: QueryParams, name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise UsageError(f"{name} must be a number, got {text!r:.40}")
    return int(text)


def _find_or_none(records: Records, request: str) -> LogRow | None:
    try:
        return find_row(records.reader, request)
    except SourceError:  # there was none, or it was deleted by the retention time
        return None


def _own_row(records: Records, request: str, person: Person) -> LogRow:
    """Return a request that a person may score; others are as unknown as ids that do not exist."""
    if "admin" in person.roles:
        return find_row(records.reader, request)
    person.require("chat")
    row = _find_or_none(records, request)
    if row is None or row.person != person.name or row.id != request:
        raise SourceError(f"no request '{request}' in the log")
    return row


def _blocks(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield blocks of lines, each of which is read in a thread of its own."""
    while block := b"".join(islice(lines, 200)):
        yield block
