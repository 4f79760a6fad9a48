"""Plain text, JSON lines, JSON and CSV in every compression; recognition of formats."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from meditron.core.errors import InputError, SourceError
from meditron.sources.document import ReadLog
from meditron.sources.registry import SOURCES, open_source

from .conftest import Medline, citation

PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "bzip2 in several streams": lambda data: bz2.compress(data[:9]) + bz2.compress(data[9:]),
    "gzip in members, padded between": lambda data: (
        gzip.compress(data[:9]) + bytes(200_000) + gzip.compress(data[9:]) + bytes(512)
    ),
    "zstd after a skippable frame": lambda data: (
        b"\x50\x2a\x4d\x18\4\0\0\0size" + zstandard.ZstdCompressor().compress(data)
    ),
    "xz": lzma.compress,
    "utf-16": lambda data: data.decode().encode("utf-16"),
    "utf-16 big-endian, gzip": lambda data: gzip.compress(b"\xfe\xff" + data.decode().encode("utf-16-be")),
    "utf-32": lambda data: data.decode().encode("utf-32"),
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_a_text_file_is_one_document(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
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


@pytest.mark.parametrize("pack", [PACK["gzip"], PACK["bzip2"], PACK["xz"], PACK["zstd"]])
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
        ('{"text": "a", "year": "x"}', 'the year "x" is not a number'),
        ('{"text": "a", "meta": {"score": NaN}}', "NaN is not a finite number"),
        ('{"text": "a", "meta": {"score": 1e999}}', "1e999 is not a finite number"),
    ],
)
def test_invalid_lines_are_reported_with_their_number(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl \(line 2\)") as raised:
        list(open_source(path))
    assert problem in str(raised.value)


def test_half_of_a_surrogate_pair_is_replaced_in_every_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        r'{"id": "a\ud800", "title": "\udc00b", "text": "\ud83d\ude00 \\ud800", "meta": {"\ud800": 1}}'
    )
    (document,) = open_source(path)
    assert (document.id, document.title, document.meta) == ("a\ufffd", "\ufffdb", {"\ufffd": 1})
    assert document.sections[0].text == "\U0001f600 \\ud800"
    assert document.to_json_line()


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("schön".encode("latin-1"))
    with pytest.raises(InputError, match="byte 3"):
        list(open_source(path, "text"))


def test_the_format_is_recognised_by_content(medline: Medline, tmp_path: Path) -> None:
    path = medline(citation(5), name="dump.jsonl", packed=True)
    assert [document.source for document in open_source(path)] == ["pubmed"]


def test_content_of_no_known_format(tmp_path: Path) -> None:
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


def zipped(name: str, content: str = "<x/>") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


KINDS = {
    "an RTF file": b"{\\rtf1\\ansi Some text.}",
    "a Word document": zipped("word/document.xml"),
    "an Excel workbook": zipped("xl/workbook.xml"),
    "a RAR archive": b"Rar!\x1a\x07\x01\0",
    "an e-book": zipped("mimetype", "application/epub+zip"),
    "packed twice with gzip": gzip.compress(gzip.compress(b"text")),
    "an ORC file": b"ORC\x08\x03",
    "an SQLite database": b"SQLite format 3\0\x10",
    "XML with the root element <book>": b'<?xml version="1.0"?>\n<!-- BITS -->\n<book><front>',
    "XML with the root element <TEI>": b"<TEI><teiHeader>",
    "a list of checksums": b"d41d8cd98f00b204e9800998ecf8427e  pubmed24n0001.xml.gz\n",
    "PubMed's text format": b"PMID- 12345\nOWN - NLM\n",
    "a web archive": b"WARC/1.0\r\nWARC-Type: warcinfo\r\n",
    "a BibTeX file": b"@article{x, title = {Y}}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_formats_without_a_reader_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    for pack in (lambda data: data, gzip.compress):
        path = tmp_path / "file"
        path.write_bytes(pack(KINDS[kind]) if "twice" not in kind else KINDS[kind])
        with pytest.raises(InputError, match=rf"file: {kind}"):
            open_source(path)


def test_text_may_begin_with_any_character(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    for text in (
        "<5 mg of the drug was given.",
        "[1] A reference.",
        "{curly} text",
        "text, and more text\nof it",
    ):
        path.write_text(text)
        (document,) = open_source(path)
        assert (document.source, document.sections[0].text) == ("text", text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Größe".encode("latin-1") + b" in the whole text", r"\(byte 2\): not UTF-8: 0xf6"),
        (b"text" + b"\0" + b"more", r"\(byte 4\): binary data, not text: a NUL byte"),
        (b"text " * 2_000 + b"\0", r"\(byte 10,000\): a NUL byte"),
        (b"text " * 2_000 + b"\xe9", r"\(byte 10,000\): not UTF-8: 0xe9"),
        (b" \n\t", "only white space"),
        (b"\xff\xfe" + "text".encode("utf-16-le") + b"\0", "not UTF-16"),
        (b"\xff\xfe\0\xd8\0\0", "not UTF-16"),
    ],
)
def test_files_that_are_not_text(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(open_source(path))


ROWS = [{"id": "a", "text": "first", "title": "T"}, {"text": "second", "year": 1999}]


@pytest.mark.parametrize(
    ("written", "source"),
    [
        ('{  "id": "a", "text": "first", "title": "T"}\r\n{ "text": "second", "year": 1999}\r\n', "jsonl"),
        ("\ufeff" + "\n".join(map(json.dumps, ROWS)), "jsonl"),
        (json.dumps(ROWS), "json"),
        ("\ufeff" + json.dumps(ROWS, indent=2), "json"),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS), "json"),
        (json.dumps({"a": ROWS[0], "json:rows.dat:2": ROWS[1]}, indent=1), "json"),
        ('id,text,title,year\na,first,T,\n,"second",,1999\n', "csv"),
        ("\ufeffID;Text;Title;Year\r\na;first;T;\r\n;second;;1999.0\r\n", "csv"),
        ("text\ttitle\tid\tyear\nfirst\tT\ta\t\nsecond\t\t\t1999", "csv"),
    ],
)
def test_rows_in_every_form(tmp_path: Path, written: str, source: str) -> None:
    path = tmp_path / "rows.dat"
    path.write_bytes(written.encode())
    first, second = open_source(path)
    assert (first.id, first.title, first.sections[0].text) == ("a", "T", "first")
    assert (second.year, second.sections[0].text, second.source) == (1999, "second", source)
    assert second.id.startswith(f"{source}:rows.dat:")
    assert {document.id for document in open_source(path, name="b/rows")} == {
        "a",
        second.id.replace("rows.dat", "b/rows"),
    } or ("json:rows.dat:2" in written)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("x.jsonl", '{"text": null, "id": 1}\n{"text": "a", "year": 2020.0, "id": 2.0}'),
        ("x.json", '[{"text": null}, {"text": "a", "year": "2020", "id": 2}]'),
        ("x.json", '{"1": {"text": null},\n"2": {"text": "a", "year": "2020.0"}}'),
        ("x.csv", "text,id,year\n,1,\na,2,2020.0\n"),
    ],
)
def test_rows_of_a_data_frame_with_missing_values(tmp_path: Path, name: str, written: str) -> None:
    path = tmp_path / name
    path.write_text(written)
    log = ReadLog()
    (document,) = open_source(path, log=log)
    assert (document.id, document.year, document.sections[0].text) == ("2", 2020, "a")
    assert log.skipped == {"row without text": 1}


def test_a_retraction_is_true_beside_or_within_meta(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"retracted": True},
        {"meta": {"retracted": True}},
        {"meta": {"retracted": "yes"}},
        {"retracted": 1},
        {},
    ]
    path.write_text("".join(json.dumps({"text": "one"} | row) + "\n" for row in rows))
    assert [document.retracted for document in open_source(path)] == [True, True, False, False, False]


def test_a_csv_with_quotes_line_breaks_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,journal\n"a ""b"",\nc",J\n,K\nd,\n')
    log = ReadLog()
    first, second = open_source(path, log=log)
    assert (first.sections[0].text, first.meta, first.id) == ('a "b",\nc', {"journal": "J"}, "csv:rows.csv:2")
    assert (second.sections[0].text, second.id) == ("d", "csv:rows.csv:5")
    assert log.skipped == {"row without text": 1}


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("x.csv", "pmid,abstract\n1,a\n", r'\(line 1\): no column "text"; its columns: pmid, abstract'),
        ("x.tsv.gz", "a prose line\nanother", 'no column "text"'),
        ("x.csv", "id,text\n1,a\n2,b,c\n", r"\(line 3\): 3 columns, not 2"),
        ("x.csv", 'id,text\n1,a\n2,"b\nc\n', r"\(line 3\): not CSV"),
        ("x.csv", "text,year\na,MCMXC\n", 'the year "MCMXC" is not a number'),
        ("x.json", '[{"text": "a"}, {"txt": "b"}]', r'\(document 2\): no object with a "text"'),
        ("x.json", '{"title": "T",\n"abstract": "A"}', 'no object with a "text"'),
        ("x.json", '[{"text": "a"},\n {"text": "b"', r"\(line 2\): not JSON"),
        ("x.json", '{"a": {"text": "b"},\n"a": {"text": "c"}}', 'duplicate key "a"'),
        ("x.json", "[" * 100_000, "x.json"),
        ("x.jsonl", '{"text": "a", "text": "b"}', r'\(line 1\): not JSON: duplicate key "text"'),
        ("x.jsonl", '{"text": "a"} {"text": "b"}', r"\(line 1\): text after the JSON value"),
        ("x.jsonl", '{"id": true, "text": "b"}', '"id" is a bool'),
        ("x.jsonl", '{"year": 2020.5, "text": "b"}', '"year" is a float'),
        ("x.jsonl", '{"year": "n.d.", "text": "b"}', 'the year "n.d." is not a number'),
    ],
)
def test_invalid_rows_are_reported_with_their_place(
    tmp_path: Path, name: str, written: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(written)
    with pytest.raises(InputError, match=message):
        list(open_source(path))


def test_a_row_without_text_lists_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"pmid": 1, "abstract": "b"}\n')
    with pytest.raises(InputError, match=r"\(line 2\)") as raised:
        list(open_source(path))
    assert raised.value.hint == 'rename the key of the text to "text"; the keys: pmid, abstract'
    path.write_text('{"text": "a"}\n{"\\ud800": 1}\n')
    with pytest.raises(InputError, match=r"\(line 2\)") as raised:
        list(open_source(path))
    str(raised.value.hint).encode()


def test_lines_and_documents_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meditron.store.jsonl.LONGEST_LINE", 400_000)
    monkeypatch.setattr("meditron.sources.plain.LONGEST_DOCUMENT", 1_000)
    path = tmp_path / "x.jsonl"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * 1_000 + b'"}'))
    assert len(list(open_source(path))) == 1
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * 1_001 + b'"}'))
    with pytest.raises(InputError, match=r"\(line 1\): a text of more than"):
        list(open_source(path))
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "' + b"a" * 999_999))
    with pytest.raises(InputError, match=r"\(line 2\): a line of more than"):
        list(open_source(path))
    path.write_bytes(b"a" * 1_001)
    with pytest.raises(InputError, match="longer than"):
        list(open_source(path, "text"))


def test_a_line_of_very_many_values_is_refused_before_it_is_built(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(gzip.compress(b'{"text": "a", "meta": {"a": [' + b"{}," * 2_100_000 + b"{}]}}"))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"\(line 1\): not JSON: more than 4,000,000 commas"):
        list(open_source(path))
    assert tracemalloc.get_traced_memory()[1] < 60 << 20
    tracemalloc.stop()


def test_a_first_line_nested_too_deeply_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": ' + "[" * 3_000 + "\nx")
    with pytest.raises(InputError, match="not JSON: maximum recursion depth"):
        list(open_source(path))


def test_a_column_that_would_hide_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,id,Text\none,1,two\n")
    with pytest.raises(InputError, match="two columns are called 'text'"):
        list(open_source(tmp_path / "rows.csv"))


@pytest.mark.parametrize(
    "text", ["ORC is an organ of the rat.", "GGUF files hold weights.", "PAR1 is a gene."]
)
def test_prose_may_begin_as_a_binary_format_does(tmp_path: Path, text: str) -> None:
    (tmp_path / "note.txt").write_text(text)
    assert [document.sections[0].text for document in open_source(tmp_path / "note.txt")] == [text]


def test_statements_of_a_row_are_metadata(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "license": "CC BY 4.0", "date": "2021-03", "url": "https://example.org", "other": 1},
        {"text": "b", "metadata": {"license": "CC0", "date": "1999", "n": 5}, "year": 2000},
        {"text": "c", "meta": {"licence": "own", "license": "CC0"}, "license": "row", "date": 5},
        {"text": "d", "meta": {"licence": None}, "license": "CC0"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third, fourth = open_source(path)
    assert fourth.meta == {"licence": "CC0"}
    assert first.meta == {"licence": "CC BY 4.0", "date": "2021-03", "url": "https://example.org"}
    assert (first.year, second.year, third.year) == (2021, 2000, None)
    # A licence has one name, whatever its spelling in the file.
    assert second.meta == {"licence": "CC0", "date": "1999", "n": 5}
    assert third.meta == {"licence": "own"}
    table = tmp_path / "a.csv"
    table.write_text("text,license,date\nAspirin,CC BY 4.0,2020-01-02\n")
    (document,) = open_source(table)
    assert (document.meta["licence"], document.year) == ("CC BY 4.0", 2020)
