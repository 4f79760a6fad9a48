"""Readers of plain text (one document per file) and of JSON lines, JSON and CSV (one document per row).

The files may be compressed. The id of a text file is `text:` and its name; its title is empty. A row has
`text`, and optionally `id`, `title`, `language`, `year`, `retracted` (only JSON's `true` counts, also within
`meta`) and `meta`; other columns of a CSV file are added to `meta`, and of any row `licence` (or `license`),
`date` and `url`. `metadata` is read as `meta`, as in corpora of the hub. A row without an id gets the id
`jsonl:NAME:LINE`, `json:NAME:NUMBER` or `csv:NAME:LINE`. A JSON file is an array of such objects, or one
object that maps ids to them. Rows whose `text` is null are skipped, and a `year` or `id` may be written as
`2020.0` or, the year, as `"2020"`: data frames with missing values write them so. The first line of a CSV
file has the column names, separated by comma, semicolon, tab or vertical bar.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError
from meditron.sources.dates import leading_year
from meditron.sources.document import Document, Readable, ReadLog, Section
from meditron.sources.streams import LONGEST_DOCUMENT, lines, path_as_text, read_whole
from meditron.store.files import parse_finite_number, reject_duplicate_keys
from meditron.store.jsonl import LONGEST_LINE, check_value_count

__all__ = [
    "iterate_json_values",
    "iterate_jsonl_rows",
    "read_csv",
    "read_json",
    "read_jsonl",
    "read_text",
    "recognises_csv",
    "recognises_json",
    "recognises_jsonl",
    "recognises_text",
    "row_to_document",
]

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELD_TYPES = {"id": str | int, "title": str, "language": str, "year": int, "meta": dict}
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*["}]|\[\s*[\[{"\]])')
_OBJECT = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*["}]')
_MARKUP = re.compile(r"\ufeff?\s*<[A-Za-z!?/]")
_BLANK = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[\w.-]+")
_STATEMENTS = {"licence": "licence", "license": "licence", "date": "date", "url": "url"}
_STATED_YEAR = re.compile(r"([0-9]{1,4})(?:\.0)?|\s*")
_DELIMITERS = ",;\t|"


def recognises_jsonl(start: bytes) -> bool:
    """Return True for the start of a JSON lines file: its first line is a complete JSON object."""
    if not _OBJECT.match(start):
        return False
    first, end, rest = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not end or _OBJECT.match(rest):
        return True
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def recognises_json(start: bytes) -> bool:
    """Return True for the start of a JSON array or object that is not JSON lines."""
    return _JSON.match(start) is not None and not recognises_jsonl(start)


def recognises_csv(start: bytes) -> bool:
    """Return True if the first line has column names, one of them `text`, and the second as many columns."""
    rows = start.decode("utf-8-sig", "ignore").splitlines()
    names, delimiter = _parse_header(rows[0]) if rows else ([], ",")
    if len(names) < 2 or "text" not in names or not all(map(_NAME.fullmatch, names)):
        return False
    return len(rows) == 1 or rows[1].count(delimiter) >= len(names) - 1


def recognises_text(start: bytes) -> bool:
    """Return True for the start of UTF-8 text that is neither markup nor JSON."""
    text = start.decode("utf-8", errors="ignore")
    complete = len(start) - len(text.encode()) < 4  # up to 3 bytes of a cut character at the end are accepted
    plain = bool(text.strip("\ufeff \t\r\n")) and "\0" not in text
    return complete and plain and not _MARKUP.match(text) and not _JSON.match(start)


def _printable_file_name(file: Readable) -> str:
    return path_as_text(Path(file.name))


def read_text(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the text of a file as one document with one section.

    Raises:
        InputError: The file is not UTF-8, has a NUL byte, or is longer than LONGEST_DOCUMENT.
    """
    data = read_whole(file, LONGEST_DOCUMENT)
    if (at := data.find(b"\0")) >= 0:
        hint = "UTF-16 and UTF-32 are read if they begin with a byte order mark"
        raise InputError(
            file, "a NUL byte, which text files must not contain", place=f"byte {at:,}", hint=hint
        )
    yield Document(
        f"text:{name or _printable_file_name(file)}", "text", "", (Section(_decode_utf8(file, data)),)
    )


def read_jsonl(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the documents of a JSON lines file in order. Blank lines and rows without text are skipped.

    Raises:
        InputError: A line is not a JSON object with a text; the error names the line.
    """
    for row, place in iterate_jsonl_rows(file, log):
        if _is_without_text(row, log):
            continue
        number = place.removeprefix("line ").replace(",", "")
        yield row_to_document(
            file, row, place, "jsonl", f"jsonl:{name or _printable_file_name(file)}:{number}"
        )


def iterate_json_values(file: Readable) -> Iterator[tuple[Any, str]]:
    """Yield each value of a JSON file with its place. The file may have at most LONGEST_LINE bytes.

    Raises:
        InputError: The file is not JSON; the error names the line.
    """
    return _parse_json_values(file, read_whole(file, LONGEST_LINE), "", concatenated=True)


def iterate_jsonl_rows(file: Readable, log: ReadLog | None = None) -> Iterator[tuple[Any, str]]:
    """Yield the value of each line of a JSON lines file with its place. Blank lines are counted as skipped.

    Raises:
        InputError: A line is not JSON; the error names the line.
    """
    for number, line in enumerate(lines(file), start=1):
        if line.strip():
            yield from _parse_json_values(file, line, f"line {number:,}", concatenated=False)
        elif log is not None:
            log.skipped["blank line"] += 1


def read_json(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the documents of a JSON file in order. The file may have at most LONGEST_LINE bytes.

    Raises:
        InputError: The file is not JSON, or a value is not an object with a text; the error has the number of
            the document.
    """
    number = 0
    for value, place in iterate_json_values(file):
        single = isinstance(value, dict) and ("text" in value or not value)
        if not single and not isinstance(value, dict | list):
            raise InputError(file, 'no object with a "text"', place=place)
        rows = [value] if single else value
        for entry in rows:
            number += 1
            if _is_without_text(rows[entry] if isinstance(rows, dict) else entry, log):
                continue
            row, identity = entry, f"json:{name or _printable_file_name(file)}:{number}"
            if isinstance(rows, dict):
                row, identity = rows[entry], entry
            yield row_to_document(file, row, f"document {number:,}", "json", identity)


def read_csv(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the documents of a CSV file in order. Rows without text are counted as skipped.

    Raises:
        InputError: A row has more or fewer columns than the first, a quote is not closed, or there is no
            column `text`; the error names the line.
    """
    decoded = (_decode_utf8(file, line, f"line {n:,}") + "\n" for n, line in enumerate(lines(file), start=1))
    first = next(decoded, "")
    names, delimiter = _parse_header(first)
    if "text" not in names:
        problem = f'no column "text"; its columns: {", ".join(names)[:200]}'
        raise InputError(file, problem, place="line 1", hint="rename the column that holds the text")
    if repeated := [key for key, count in Counter(filter(None, names)).items() if count > 1]:
        raise InputError(file, f"two columns are called '{repeated[0]}'", place="line 1")
    csv.field_size_limit(LONGEST_DOCUMENT)
    name = name or _printable_file_name(file)
    rows = csv.reader(decoded, delimiter=delimiter, strict=True)
    begins = 2
    try:
        for fields in rows:
            place, begins = f"line {begins:,}", rows.line_num + 2
            if not fields:
                continue
            if len(fields) != len(names):
                raise InputError(file, f"{len(fields)} columns, not {len(names)}", place=place)
            row: dict[str, Any] = {key: field for key, field in zip(names, fields, strict=True) if field}
            if not row.get("text", "").strip():
                if log is not None:
                    log.skipped["row without text"] += 1
                continue
            known = {key: row.pop(key) for key in ("text", *_FIELD_TYPES) if key in row and key != "meta"}
            identity = f"csv:{name}:{place.removeprefix('line ')}"
            yield row_to_document(file, known | {"meta": row}, place, "csv", identity)
    except csv.Error as error:
        raise InputError(file, f"not CSV: {error}", place=f"line {begins:,}") from error


def _parse_header(line: str) -> tuple[list[str], str]:
    """Return the column names in the first line of a CSV file, in lower case, and the delimiter."""
    line = line.removeprefix("\ufeff").rstrip("\r\n")
    try:
        splits = {mark: next(csv.reader([line], delimiter=mark), []) for mark in _DELIMITERS}
    except csv.Error:
        return [], ","
    delimiter = max(_DELIMITERS, key=lambda mark: len(splits[mark]))
    return [name.strip().lower() for name in splits[delimiter]], delimiter


def _decode_utf8(file: Readable, data: bytes, place: str = "") -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = ", ".join(filter(None, [place, f"byte {error.start:,}"]))
        hint = "convert it, for example with iconv -f latin1 -t utf-8"
        raise InputError(file, f"not UTF-8: 0x{data[error.start]:02x}", place=where, hint=hint) from error


def _parse_json_values(
    file: Readable, data: bytes, place: str, *, concatenated: bool
) -> Iterator[tuple[Any, str]]:
    """Yield each JSON value in `data` with its place.

    Args:
        file: The file, for errors.
        data: The bytes to parse.
        place: Place of the data in the file; if empty, the place of a value is its line.
        concatenated: Whether several values may follow each other.
    """
    text = _decode_utf8(file, data, place)
    end = begin = 0
    line = 1
    try:
        check_value_count(data)
        while (at := _skip_blanks(text, end)) < len(text):
            line, begin = line + text.count("\n", begin, at), at
            value, end = _DECODER.raw_decode(text, begin)
            if not concatenated and _skip_blanks(text, end) < len(text):
                raise InputError(file, f"text after the JSON value, column {end + 1:,}", place=place)
            if b"\\u" in data:  # escapes can give half of a surrogate pair, which UTF-8 cannot encode
                value = json.loads(_LONE_SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
            yield value, place or f"line {line:,}"
    except json.JSONDecodeError as error:
        where = place or f"line {error.lineno:,}"
        raise InputError(file, f"not JSON: {error.msg}, column {error.colno:,}", place=where) from error
    except (ValueError, RecursionError) as error:
        raise InputError(file, f"not JSON: {error}", place=place or None) from error


def _skip_blanks(text: str, start: int) -> int:
    match = _BLANK.match(text, start)
    return start if match is None else match.end()


def _is_without_text(row: object, log: ReadLog | None) -> bool:
    """Return True for an object whose `text` is null, and count it as skipped."""
    without = isinstance(row, dict) and "text" in row and row["text"] is None
    if without and log is not None:
        log.skipped["row without text"] += 1
    return without


def row_to_document(file: Readable, row: Any, place: str, source: str, identity: str) -> Document:  # noqa: ANN401
    """Convert a row with a `text`, from JSON, CSV or Parquet, to a document.

    Args:
        file: The file, for errors.
        row: The row.
        place: Place of the row in the file, for errors.
        source: Name of the format.
        identity: Id of a row without `id`.

    Raises:
        InputError: The row is no object with a text, or a field has the wrong type.
    """
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        keys = ", ".join(row)[:200] if isinstance(row, dict) else ""
        keys = keys.encode("utf-8", "backslashreplace").decode()
        hint = f'rename the key of the text to "text"; the keys: {keys}' if keys else None
        raise InputError(file, 'no object with a "text"', place=place, hint=hint)
    row = row | {key: _whole_number(row[key]) for key in ("id", "year") if isinstance(row.get(key), float)}
    if isinstance(year := row.get("year"), str):
        if not (match := _STATED_YEAR.fullmatch(year)):
            raise InputError(file, f'the year "{year[:40]}" is not a number', place=place)
        row["year"] = int(match[1]) if match[1] else None
    for key, kind in _FIELD_TYPES.items():
        if not isinstance(row.get(key), kind | None) or isinstance(row.get(key), bool):
            raise InputError(file, f'"{key}" is a {type(row[key]).__name__}', place=place)
    if len(row["text"].encode()) > LONGEST_DOCUMENT:
        raise InputError(file, f"a text of more than {LONGEST_DOCUMENT >> 20} MiB", place=place)
    row_id, meta = row.get("id"), _row_metadata(row)
    year = row.get("year")
    if year is None and isinstance(meta.get("date"), str):
        year = leading_year(meta["date"])
    return Document(
        identity if row_id is None or row_id == "" else str(row_id),
        source,
        row.get("title") or "",
        (Section(row["text"]),),
        row.get("language"),
        year,
        retracted=row.get("retracted") is True or meta.get("retracted") is True,
        meta=meta,
    )


def _whole_number(value: float) -> int | float | None:
    """Return an integer that a data frame stores as a float, because others are missing; None for NaN."""
    return None if math.isnan(value) else int(value) if value.is_integer() else value


def _row_metadata(row: dict[str, Any]) -> dict[str, Any]:
    """Return `meta` of a row, with the statements beside it. `license` becomes `licence`."""
    meta = row.get("meta")
    if meta is None and isinstance(row.get("metadata"), dict):
        meta = row["metadata"]
    meta = dict(meta or {})
    for values in (meta, row):
        for key, name in _STATEMENTS.items():
            if isinstance(values.get(key), str) and not isinstance(meta.get(name), str):
                meta[name] = values[key]
    if isinstance(meta.get("license"), str):
        del meta["license"]
    return meta


_DECODER = json.JSONDecoder(
    parse_float=parse_finite_number,
    parse_constant=parse_finite_number,
    object_pairs_hook=reject_duplicate_keys,
)
