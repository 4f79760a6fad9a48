import gzip
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError, SourceError
from meditron.store.jsonl import JsonlWriter, read_jsonl, read_jsonl_as

SUFFIXES = [".jsonl", ".jsonl.gz", ".jsonl.zst"]
ROWS = [{"id": f"pubmed:{number}", "text": "µ-opioid\n\u2028" * (number % 40)} for number in range(3_000)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)
    assert writer.rows == len(rows)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_come_back_and_files_of_the_same_rows_are_equal(tmp_path: Path, suffix: str):
    one, two = write(tmp_path / f"one{suffix}", ROWS), write(tmp_path / f"two{suffix}", ROWS)
    assert list(read_jsonl(one)) == ROWS
    assert one.read_bytes() == two.read_bytes()


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=5))
def test_any_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]):
    folder = tmp_path_factory.mktemp("rows")
    for suffix in SUFFIXES:
        assert list(read_jsonl(write(folder / f"x{suffix}", rows))) == rows


def test_other_compressors_members_and_frames_are_read(tmp_path: Path):
    lines = b'{"a":1}\n\n{"a":2}'
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines[:5]) + gzip.compress(lines[5:]))
    frames = [zstandard.compress(lines[:5]), zstandard.compress(lines[5:])]
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "x.jsonl").write_bytes(lines)
    for suffix in SUFFIXES:
        assert list(read_jsonl(tmp_path / f"x{suffix}")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_truncated_stream_says_after_which_line(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"x{suffix}", ROWS)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"x\.jsonl\S* \(after line \d+\)"):
            list(read_jsonl(path))


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_flipped_bits_are_noticed(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"x{suffix}", ROWS)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0x10
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"line \d+"):
        list(read_jsonl(path))


def test_a_zstandard_file_of_no_bytes_is_truncated(tmp_path: Path):
    (tmp_path / "x.jsonl.zst").touch()
    with pytest.raises(InputError, match="ends too early"):
        list(read_jsonl(tmp_path / "x.jsonl.zst"))


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (b'{"a": tru}', "line 2, column 7"),
        (b'{"a": 1} {', "line 2, column 10"),
        (b'{"a": "\xff"}', "line 2, byte 7"),
        (b"[1]", "line 2.*expected a JSON object, got a list"),
        (b"[" * 100_000, "line 2"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, place: str):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    rows = read_jsonl(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(InputError, match=place):
        next(rows)


def test_a_line_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("meditron.store.jsonl.LONGEST_LINE", 1 << 20)
    (tmp_path / "bomb.jsonl.zst").write_bytes(zstandard.compress(bytes(1 << 28)))
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(bytes(1 << 25)))
    for suffix in SUFFIXES[1:]:
        with pytest.raises(InputError, match=r"line 1\).*more than 1 MiB"):
            list(read_jsonl(tmp_path / f"bomb{suffix}"))


def test_a_missing_file_is_a_source_error(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file"):
        next(read_jsonl(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_left_of_a_failed_write(tmp_path: Path, suffix: str):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / f"x{suffix}", [{"a": 1}, {"a": float("nan")}])
    assert not list(tmp_path.iterdir())


def test_a_line_of_very_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meditron.store.jsonl.MOST_VALUES", 12)
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}\n{"a": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}\n')
    with pytest.raises(InputError, match=r"\(line 2\): not JSON that can be read: more than 12 commas"):
        list(read_jsonl(path))


def test_commas_in_a_text_are_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meditron.store.jsonl.MOST_VALUES", 12)
    rows = [{"text": text} for text in (",:[{" * 9, '"' + ",\\" * 9 + '",,,,,,,,,,,,,,\\')]
    write(tmp_path / "x.jsonl", rows)
    assert list(read_jsonl(tmp_path / "x.jsonl")) == rows
    (tmp_path / "x.jsonl").write_text('{"a": "\\\\", "b": [' + "1, " * 12 + "1]}\n")
    with pytest.raises(InputError, match="more than 12 commas"):
        list(read_jsonl(tmp_path / "x.jsonl"))


def test_what_is_written_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meditron.store.jsonl.LONGEST_LINE", 20)
    path = tmp_path / "x.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"text": "a" * 9})
    assert len(list(read_jsonl(path))) == 1
    with pytest.raises(InputError, match=r"\(row 1\): a row of 21 bytes"), JsonlWriter(path) as writer:
        writer.write({"text": "a" * 10})


class Row(msgspec.Struct):
    text: str
    year: int | None = None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_typed_rows_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    rows = [{"other": [number], **row, "year": number} for number, row in enumerate(ROWS)]
    path = write(tmp_path / f"x{suffix}", rows)
    assert path.stat().st_size < (1 << 18) or suffix == ".jsonl"
    assert [(row.text, row.year) for row in read_jsonl_as(path, Row)] == [
        (row["text"], row["year"]) for row in rows
    ]


def test_blank_lines_between_typed_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\n{"text": "a"}\r\n \n\n{"text": "b"}\n\n')
    assert [row.text for row in read_jsonl_as(tmp_path / "x.jsonl", Row)] == ["a", "b"]
    (tmp_path / "x.jsonl").write_bytes(b"")
    assert not list(read_jsonl_as(tmp_path / "x.jsonl", Row))


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (b'{"text": tru}', "line 9003.*not JSON"),
        (b'{"text": "a"} {"text": "b"}', "line 9003.*not JSON"),
        (b'{"text": "\xff"}', "line 9003"),
        (b"[1]", "line 9003.*Expected `object`, got `array`"),
        (b'{"text": 1}', r"line 9003.*Expected `str`, got `int` - at `\$\.text`"),
        (b'{"a": 1}', "line 9003.*missing required field `text`"),
        (b'{"text": "", "a": ' + b"[" * 100_000 + b"}", "line 9003"),
    ],
)
def test_a_bad_line_of_typed_rows_is_named(tmp_path: Path, line: bytes, place: str) -> None:
    path = tmp_path / "x.jsonl"
    good = b'{"text": "%s"}\n' % (b"a" * 60)
    path.write_bytes(good * 9_000 + b"\n\n" + line + b"\n" + good)
    with pytest.raises(InputError, match=place):
        list(read_jsonl_as(path, Row))


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_truncated_stream_of_typed_rows_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", ROWS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"x\.jsonl\S* \(after line \d+\)"):
        list(read_jsonl_as(path, Row))


def test_a_typed_row_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meditron.store.jsonl.LONGEST_LINE", 1 << 20)
    (tmp_path / "bomb.jsonl.zst").write_bytes(zstandard.compress(bytes(1 << 28)))
    with pytest.raises(InputError, match=r"line 1\).*more than 1 MiB"):
        list(read_jsonl_as(tmp_path / "bomb.jsonl.zst", Row))
