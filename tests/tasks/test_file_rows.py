"""Rows of JSON, JSON lines and CSV: what the standard library reads, and the line of what it would not."""

import bz2
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError, SourceError
from meditron.tasks.file_rows import read_source_rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@settings(max_examples=40)
@given(objects=st.lists(OBJECTS), indent=st.sampled_from([None, 2]), ascii=st.booleans())
def test_arrays_and_objects_are_json(folder: Path, objects: list[Any], indent: Any, ascii: bool) -> None:
    path = write(folder, "a.json", json.dumps(objects, indent=indent, ensure_ascii=ascii))
    assert [row.fields for row in read_source_rows(path)] == objects
    keyed = {f"key {n}": item for n, item in enumerate(objects)}
    path = write(folder, "b.json", " " + json.dumps(keyed, indent=indent or 1, ensure_ascii=ascii) + "\n")
    assert {row.id: row.fields for row in read_source_rows(path)} == keyed


@settings(max_examples=40)
@given(objects=st.lists(OBJECTS.map(lambda item: {"question": ""} | item), min_size=1), blank=st.booleans())
def test_lines_are_json_each(folder: Path, objects: list[Any], blank: bool) -> None:
    lines = ("\n \n" if blank else "\r\n").join(json.dumps(item) for item in objects)
    result = list(read_source_rows(write(folder, "a.jsonl", "\ufeff" + lines)))
    assert [row.fields for row in result] == objects
    assert [row.id for row in result] == [str(1 + n * (1 + blank)) for n in range(len(objects))]


@settings(max_examples=40)
@given(rows=st.lists(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=6),
                              min_size=3, max_size=3), min_size=1))  # fmt: skip
def test_csv_is_csv(folder: Path, rows: list[list[str]]) -> None:
    for delimiter in ",;\t":
        file = io.StringIO(newline="")
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, delimiter=delimiter)
        writer.writerows([["question", "b", "c"], *rows])
        result = list(read_source_rows(write(folder, "a.csv", file.getvalue())))
        assert [list(row.fields.values()) for row in result] == rows
        assert all(list(row.fields) == ["question", "b", "c"] for row in result)


def test_files_with_semicolons_and_commas_in_questions(tmp_path: Path) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_text("Which, if any?;w;x,;y;z;A\nWhat?;w;x;y;z;B\n", encoding="utf-8")
    first, second = read_source_rows(path)
    path.write_text("question, whole;A;B;answer\nfever, 38;w;x;A\n", encoding="utf-8")
    assert list(next(iter(read_source_rows(path))).fields) == ["question, whole", "A", "B", "answer"]
    assert (first.fields["question"], first.fields["B"], second.fields["answer"]) == (
        "Which, if any?",
        "x,",
        "B",
    )


def test_compressed_alike(tmp_path: Path) -> None:
    data = b'{"question": "Why?", "gold": 0}\n'
    packed = {"gz": gzip.compress(data), "bz2": bz2.compress(data), "zst": zstandard.compress(data)}
    for suffix, content in packed.items():
        path = tmp_path / f"a.jsonl.{suffix}"
        path.write_bytes(content)
        assert [row.fields for row in read_source_rows(path)] == [{"question": "Why?", "gold": 0}]
    (tmp_path / "cut.jsonl.gz").write_bytes(packed["gz"][:-9])
    with pytest.raises(
        InputError, match=r"cut\.jsonl\.gz \(after \d+ bytes\): the compressed data are cut off"
    ):
        list(read_source_rows(tmp_path / "cut.jsonl.gz"))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", "<html>", "an HTML page, which is not read as questions"),
        ("a.jsonl", '{"a": 1}\n{"a": 2', "(line 2, column"),
        ("a.jsonl", '{"a": 1}\n\n[1]', "(line 3): expected an object, got a list"),
        ("a.jsonl", '{"a": 1}\n{"a": 1} {"a": 2}', "(line 2, column 9): more than one value"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}', "(line 2): not JSON that can be read: duplicate key"),
        ("a.jsonl", '{"a": 1}\n{"a": ' + DEEP, "(line 2): not JSON that can be read"),
        ("a.jsonl", '{"a": 1}\n{"a": ' + "9" * 5000 + "}", "(line 2): not JSON that can be read"),
        ("a.json", '[\n{"a": 1},\n{"a": x}\n]', "(line 3, column"),
        ("a.json", '[\n{"a": 1},\n{"a": 2}', "(line 3): not JSON: expected ','"),
        ("a.json", '[\n{"a": 1}\n{"a": 2}]', "(line 3): not JSON: expected ','"),
        ("a.json", '[{"a": 1},\n]', "(line 2, column"),
        ("a.json", '[{"a": 1}]\n[]', "(line 2): more than one value"),
        ("a.json", '[{"a": 1},\n 5]', "(line 2, row 2): expected an object, got a int"),
        ("a.json", '{\n"a" {}}', "(line 2): not JSON: expected ':'"),
        ("a.json", '{\n"a": {},\n"b": 5}', "(line 3, row 2): expected an object, got a int"),
        ("a.json", "{", "line 1, column"),
        ("a.csv", 'question,b\n"x",1\ny\n', "(line 3): expected 2 cells, got 1"),
        ("a.csv", 'question,b\n"x\ny",1\n"z"w,1\n', "(line 4): not CSV"),
        ("a.csv", 'question,b\n"x', "(line 2): not CSV"),
    ],
)  # fmt: skip
def test_damage_is_reported_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(InputError) as caught:
        list(read_source_rows(path))
    assert str(path) in caught.value.message
    assert message in caught.value.message


def test_bytes_that_are_not_utf8_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}')
    with pytest.raises(InputError, match=r"\(line 2, byte 16\): not UTF-8"):
        list(read_source_rows(tmp_path / "a.jsonl"))
    with pytest.raises(SourceError, match="no such file"):
        list(read_source_rows(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"%PDF-1.7 \xe2\xe3\xcf\xd3", "a PDF file, which is not read as questions"),
        (b"PAR1\x15\x04\x15\xff", "a Parquet file, which is not read"),
        (b"<!DOCTYPE html><html>Sign in</html>", "an HTML page, which is not read"),
        (b"PK\x03\x04\x14\xff", "an archive, which is not read as questions"),
    ],
)
def test_files_of_other_formats_are_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        list(read_source_rows(path))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_half_of_a_surrogate_pair_is_an_error_of_its_line(tmp_path: Path, name: str) -> None:
    rows = [{"question": "\U0001f9e0 \ud83e\udde0"}, {"question": ["\ud83e"]}]
    lines = [json.dumps(row) for row in rows]
    text = "\n".join(lines) if name.endswith("l") else f"[{lines[0]},\n{lines[1]}]"
    with pytest.raises(InputError, match=r"\(line 2\): contains half of a surrogate pair"):
        list(read_source_rows(write(tmp_path, name, text)))
