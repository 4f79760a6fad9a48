"""Plain text and JSON lines, compressed in each way; and the one door that finds a file's kind."""

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from meditron.ground.errors import InputError, SourceError
from meditron.sources.registry import SOURCES, open_source

from .conftest import Medline, citation

PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_one_text_one_document(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "note.dat"
    path.write_bytes(pack("Größe <5 mm\nzwei".encode()))
    (document,) = open_source(path)
    assert (document.id, document.source) == ("text:note.dat", "text")
    assert document.sections[0].text == "Größe <5 mm\nzwei"


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_json_lines(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "rows"
    rows = [{"text": "eins"}, {"id": 7, "text": "zwei", "title": "Z", "year": 1999, "meta": {"a": [1]}}]
    path.write_bytes(pack("\n\n".join(json.dumps(row) for row in rows).encode()))
    first, second = open_source(path)
    assert (first.id, first.title, first.sections[0].text) == ("jsonl:rows:1", "", "eins")
    assert (second.id, second.title, second.year, second.meta) == ("7", "Z", 1999, {"a": [1]})


@pytest.mark.parametrize("pack", [PACK["gzip"], PACK["bzip2"], PACK["zstd"]])
def test_cut_off_files_are_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "cut"
    packed = pack("\n".join(json.dumps({"text": f"{n * n}"}) for n in range(9_000)).encode())
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(InputError, match=r"cut \(after [0-9,]+ bytes\): the compressed data are cut off"):
        list(open_source(path, "jsonl"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", '"text"'),
        ('{"text": 1}', '"text"'),
        ('{"text": "a", "year": "x"}', '"year" is a str'),
        ('{"text": "a", "meta": {"score": NaN}}', "NaN is no finite number"),
        ('{"text": "a", "meta": {"score": 1e999}}', "1e999 is no finite number"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl \(line 2\)") as raised:
        list(open_source(path))
    assert problem in str(raised.value)


def test_half_of_a_surrogate_pair_is_replaced_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        r'{"id": "a\ud800", "title": "\udc00b", "text": "\ud83d\ude00 \\ud800", "meta": {"\ud800": 1}}'
    )
    (document,) = open_source(path)
    assert (document.id, document.title, document.meta) == ("a\ufffd", "\ufffdb", {"\ufffd": 1})
    assert document.sections[0].text == "\U0001f600 \\ud800"
    assert document.to_line()


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("schön".encode("latin-1"))
    with pytest.raises(InputError, match="byte 3"):
        list(open_source(path, "text"))


def test_the_kind_is_found_by_content(medline: Medline, tmp_path: Path) -> None:
    path = medline(citation(5), name="dump.jsonl", packed=True)
    assert [document.source for document in open_source(path)] == ["pubmed"]


def test_what_has_no_kind(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(InputError, match="a PNG image"):
        open_source(path)
    path.write_bytes(b"\x01\x02\0\x03")
    with pytest.raises(InputError, match=r"x \(byte 2\): binary data") as raised:
        open_source(path)
    assert all(name in str(raised.value.hint) for name in SOURCES)
    with pytest.raises(SourceError, match="no source format 'medlime'"):
        open_source(path, "medlime")
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        open_source(path)
