"""Rows of the request log for other programs: JSON Lines and CSV, with the names of OpenTelemetry.

Names that begin with `gen_ai.` are those of OpenTelemetry's semantic conventions for generative AI, version
0.1.0 (status: development); `error.type` and `http.response.status_code` are its general ones. What they have
no name for begins with `meditron.`.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from meditron.serve.log_rows import LogRow
from meditron.store.jsonl import encode_row

__all__ = ["CONVENTIONS", "attributes_of", "csv_line", "csv_lines", "jsonl_lines", "utc_time"]

CONVENTIONS = "gen-ai 0.1.0"
"""Version of the conventions."""
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
_REQUEST = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "stop": "gen_ai.request.stop_sequences",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "n": "gen_ai.request.choice.count",
    "stream": "gen_ai.request.stream",
}
"""Setting by its OpenAI name → attribute."""
_COLUMNS = (
    *("meditron.time", "gen_ai.response.id", "meditron.person", "meditron.endpoint"),
    *("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "meditron.model.sha256"),
    *("gen_ai.prompt.name", "gen_ai.prompt.version", "meditron.prompt.label"),
    *("http.response.status_code", "error.type", "meditron.error", "gen_ai.response.finish_reasons"),
    *("meditron.duration", "gen_ai.response.time_to_first_chunk"),
    *("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
    *_REQUEST.values(),
    *("meditron.request.other", "meditron.tags", "meditron.metadata", "meditron.scores"),
    *("meditron.replay_of", "gen_ai.input.messages", "gen_ai.output.messages"),
)
"""Columns of a CSV file."""
# A spreadsheet executes a text that begins like a formula; some of them read the wide characters alike.
_FORMULA = tuple("=+-@＝＋－＠\t\r\n")


def attributes_of(row: LogRow) -> dict[str, Any]:
    """Return a row by the names of OpenTelemetry; what is not known is left out."""
    failed = row.status >= 400
    values: dict[str, Any] = {
        "meditron.time": utc_time(row.started),
        "meditron.conventions": CONVENTIONS,
        "gen_ai.response.id": row.id,
        "meditron.person": row.person,
        "meditron.endpoint": row.endpoint,
        "gen_ai.operation.name": _OPERATIONS.get(row.endpoint, "chat"),
        "gen_ai.provider.name": "meditron",
        "gen_ai.request.model": row.model,
        "meditron.model.sha256": row.model_sha256,
        "gen_ai.prompt.name": row.prompt_name,
        "gen_ai.prompt.version": row.prompt_version,
        "meditron.prompt.label": row.prompt_label,
        "http.response.status_code": row.status,
        "error.type": str(row.status) if failed else None,
        "meditron.error": row.error,
        "gen_ai.response.finish_reasons": [row.finish] if row.finish else None,
        "meditron.duration": row.seconds,
        "gen_ai.response.time_to_first_chunk": row.first_token_seconds,
        "gen_ai.usage.input_tokens": row.input_tokens,
        "gen_ai.usage.output_tokens": row.output_tokens,
        **{attribute: row.sampling.get(name) for name, attribute in _REQUEST.items()},
        "meditron.request.other": {k: v for k, v in row.sampling.items() if k not in _REQUEST} or None,
        "meditron.tags": list(row.tags) or None,
        "meditron.metadata": dict(row.metadata) or None,
        "meditron.scores": [
            {"name": each.name, "value": each.value, "person": each.person, "time": utc_time(each.time)}
            for each in row.scores
        ]
        or None,
        "meditron.replay_of": row.replay_of,
        "gen_ai.input.messages": _input_messages(row.messages),
        "gen_ai.output.messages": _output_messages(row),
    }
    return {name: value for name, value in values.items() if value is not None}


def jsonl_lines(rows: Iterable[LogRow]) -> Iterator[bytes]:
    """Yield each row as a line of JSON."""
    return (encode_row(attributes_of(row)) for row in rows)


def csv_lines(rows: Iterable[LogRow]) -> Iterator[bytes]:
    """Yield the lines of a CSV table."""
    yield csv_line(_COLUMNS)
    for row in rows:
        yield csv_line(map(attributes_of(row).get, _COLUMNS))


def csv_line(values: Iterable[object]) -> bytes:
    """Return a line of a CSV table: None is empty, lists and objects are JSON, and no cell is a formula."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(map(_csv_cell, values))
    return line.getvalue().encode()


def utc_time(seconds: float) -> str:
    """Return a time as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _input_messages(messages: Any) -> list[dict[str, Any]] | None:  # noqa: ANN401  # any JSON value
    if messages is None:
        return None
    if isinstance(messages, str):
        return [{"role": "user", "parts": [_part(messages)]}]
    return [
        {"role": str(message.get("role", "user")), "parts": _parts(message.get("content"))}
        for message in messages
        if isinstance(message, Mapping)
    ]


def _output_messages(row: LogRow) -> list[dict[str, Any]] | None:
    if row.answers is None:
        return None
    finish = row.finish or "error"
    return [{"role": "assistant", "parts": [_part(text)], "finish_reason": finish} for text in row.answers]


def _parts(content: Any) -> list[dict[str, Any]]:  # noqa: ANN401  # any JSON value
    if isinstance(content, list):
        return [
            _part(item["text"]) if isinstance(item, dict) and isinstance(item.get("text"), str) else
            {"type": "other", "content": item}
            for item in content
        ]  # fmt: skip
    return [_part(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))]


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def _csv_cell(value: object) -> object:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
