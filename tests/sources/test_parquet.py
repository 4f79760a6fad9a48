"""Parquet files: rows as JSON lines would have them, the hub's layout, damage and bombs."""

import contextlib
import io
import json
from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as pq

from meditron.core.errors import InputError
from meditron.sources.document import Document, ReadLog
from meditron.sources.registry import find_source_format, format_name, open_source
from small_archives import write_archive

ROWS = [
    {
        "id": f"r{i}",
        "title": f"Title {i}",
        "text": f"Aspirin {i} mg.\nOnce.",
        "language": "en",
        "year": 2000 + i,
    }
    for i in range(5)
]


def write(path: Path, columns: dict[str, Any] | list[dict[str, Any]], **options: Any) -> Path:
    table = pa.table(columns) if isinstance(columns, dict) else pa.Table.from_pylist(columns)
    pq.write_table(table, path, **options)
    return path


def test_rows_are_those_of_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "train-00000-of-00001.parquet", ROWS, row_group_size=2)
    assert format_name(find_source_format(path)) == "parquet"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lines = [document.to_json() | {"source": "parquet"} for document in open_source(tmp_path / "a.jsonl")]
    assert [document.to_json() for document in open_source(path)] == lines


def test_columns_become_fields_and_metadata(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        {
            "Text": ["One.", None, " ", "Four."],
            "License": ["CC BY 4.0", "x", "x", None],
            "date": [date(2021, 3, 9)] * 4,
            "time": [datetime(2021, 3, 9, 10, tzinfo=UTC)] * 4,
            "score": [0.5, 1.0, 1.0, float("nan")],
            "price": [Decimal("1.50")] * 4,
            "tags": [["a", "b"]] * 4,
            "source": [{"name": "x", "blob": b"\0"}] * 4,
            "image": [b"\x89PNG"] * 4,
            "year": [2021, 2021, 2021, None],
            "meta": [{"retracted": True}, None, None, None],
        },
    )
    log = ReadLog()
    first, last = open_source(path, log=log)
    assert (first.id, first.year, first.retracted) == ("parquet:a.parquet:1", 2021, True)
    assert first.meta == {
        "licence": "CC BY 4.0",
        "date": "2021-03-09",
        "time": "2021-03-09T10:00:00+00:00",
        "score": 0.5,
        "price": 1.5,
        "tags": ["a", "b"],
        "source": {"name": "x", "blob": None},
        "retracted": True,
    }
    assert (last.id, last.year, "score" in last.meta) == ("parquet:a.parquet:4", 2021, False)
    assert log.skipped == Counter({"row without text": 2})


def test_integer_ids_dictionaries_and_large_strings(tmp_path: Path) -> None:
    text = pa.array(["One.", "Two."], pa.large_string())
    title = pa.array(["Same", "Same"]).dictionary_encode()
    path = write(tmp_path / "a.parquet", {"id": [7, 8], "text": text, "title": title})
    assert [(document.id, document.title) for document in open_source(path)] == [("7", "Same"), ("8", "Same")]


def test_columns_with_missing_values_and_binary_strings(tmp_path: Path) -> None:
    columns = {
        "text": ["ä".encode(), b"b", None],
        "id": [1.0, float("nan"), 3.0],
        "year": [2020.0, None, float("nan")],
        "title": [b"T", None, None],
    }
    first, second = open_source(write(tmp_path / "a.parquet", columns))
    assert (first.sections[0].text, first.id, first.year, first.title) == ("ä", "1", 2020, "T")
    assert (second.id, second.year, second.title) == ("parquet:a.parquet:2", None, "")


def test_the_guidelines_of_the_hub_as_parquet(tmp_path: Path) -> None:
    row = {"id": "a", "source": "who", "title": "T", "clean_text": "# H\nText.", "raw_text": "", "url": None}
    (document,) = open_source(write(tmp_path / "a.parquet", [row | {"overview": None}]))
    assert (document.id, document.source) == ("guideline:a", "guidelines")
    assert document.sections[0].label == "H"


def test_files_in_archives_and_packed(tmp_path: Path) -> None:
    import gzip

    data = write(tmp_path / "a.parquet", ROWS).read_bytes()
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress(data))
    archive = write_archive(tmp_path / "all.zip", {"data/a.parquet": data})
    assert len(list(open_source(archive))) == len(list(open_source(tmp_path / "b.parquet.gz"))) == 5


def test_a_data_set_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    data = write(tmp_path / "a.parquet", ROWS).read_bytes()
    names = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
    members = {"README.md": "# Card", ".gitattributes": "*", "dataset_infos.json": "{}"}
    log = ReadLog()
    documents = list(
        open_source(write_archive(tmp_path / "hub.zip", members | dict.fromkeys(names, data)), log=log)
    )
    assert len(documents) == 10
    skipped = ("README or licence", "hidden file", "description of the data set")
    assert log.skipped == Counter(dict.fromkeys(skipped, 1))


def test_problems_name_the_column_or_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for columns, problem in (
        ({"body": ["x"]}, r'no column "text"; its columns: body'),
        ({"text": [1, 2]}, r'\(row 1\): "text" is a int'),
        ({"text": ["a"], "Text": ["b"]}, "two columns are called 'text'"),
        ({"text": ["a", "b"], "year": ["x", "y"]}, r'\(row 1\): the year "x" is not a number'),
        ({"text": [b"\xff"]}, r'\(row 1\): "text" is binary and not UTF-8'),
    ):
        write(path, columns)
        with pytest.raises(InputError, match=problem):
            list(open_source(path))


def test_damaged_files(tmp_path: Path) -> None:
    data = write(tmp_path / "a.parquet", ROWS, compression="zstd").read_bytes()
    path = tmp_path / "b.parquet"
    for damaged in (data[:-9], data[:40], b"PAR1" + bytes(100), data[:20] + bytes(30) + data[50:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"b\.parquet.*not Parquet, or damaged"):
            list(open_source(path))


@given(st.lists(st.tuples(st.integers(4, 3_000), st.integers(0, 255)), min_size=1, max_size=10))
def test_damage_never_escapes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(_EXAMPLE)
    for at, value in changes:
        data[at % len(data)] = value
    data[:4] = b"PAR1"
    file = _Memory(bytes(data))
    with contextlib.suppress(InputError):
        assert all(isinstance(document, Document) for document in open_source(file, "parquet"))


class _Memory:
    """A file in memory."""

    name = "x.parquet"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self._data)


_buffer = io.BytesIO()
pq.write_table(pa.Table.from_pylist(ROWS), _buffer, compression="none", row_group_size=2)
_EXAMPLE = _buffer.getvalue()


def test_a_repeated_text_is_not_decoded_at_once(tmp_path: Path) -> None:
    """A dictionary-encoded megabyte that occurs ten thousand times is a file of a megabyte."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["a b " * (1 << 18)]))
    path = write(tmp_path / "a.parquet", {"text": text}, compression="zstd")
    assert path.stat().st_size < 1 << 20
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    documents = open_source(path)
    for _ in range(100):
        next(documents)
    assert pool.max_memory() <= max(before, 512 << 20)
