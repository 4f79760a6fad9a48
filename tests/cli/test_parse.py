"""`parse` of archives, sections with a path, and files that another tool must convert first."""

import json
from pathlib import Path

from command import Command
from small_archives import write_archive


def test_parse_reads_archives_in_place(meditron: Command, tmp_path: Path) -> None:
    members = {"README": "About the set.", "a.jsonl": '{"text": "one"}\n\n{"text": "two", "retracted": true}'}
    for suffix in ("zip", "tar.gz"):
        result = meditron("parse", write_archive(tmp_path / f"set.{suffix}", members))
        assert result.code == 0
        rows = [json.loads(line) for line in result.out.splitlines()]
        assert [row["id"] for row in rows] == [f"jsonl:set.{suffix}!a.jsonl:{line}" for line in (1, 3)]
        assert [row["retracted"] for row in rows] == [False, True]
        messages = " ".join(result.err.split())
        assert "1 skipped: README or licence" in messages
        assert "1 skipped: blank line" in messages


def test_parse_prints_the_path_of_nested_sections(meditron: Command, tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    text = "lead\n== Signs ==\n=== Skin ===\nrash"
    page = f"<page><title>T</title><ns>0</ns><id>1</id><revision><text>{text}</text></revision></page>"
    path.write_text(f"<mediawiki>{page}</mediawiki>")
    (row,) = map(json.loads, meditron("parse", path, "--json").out.splitlines())
    assert row["sections"] == [
        {"text": "lead", "label": None, "category": None},
        {"text": "rash", "label": "Skin", "category": None, "path": ["Signs"]},
    ]


def test_parse_of_a_folder_names_its_files_in_the_hint(meditron: Command, tmp_path: Path) -> None:
    result = meditron("parse", tmp_path)
    assert result.code == 2
    assert (
        f"error: {tmp_path}: expected a file, got a folder\nhint: name its files: {tmp_path}/*\n"
        in result.err
    )


def test_parse_names_the_tool_that_converts_a_file(meditron: Command, tmp_path: Path) -> None:
    for content, tool in ((b"%!PS-Adobe-3.0\n", "ps2ascii"), (b"{\\rtf1 text}", "pandoc")):
        path = tmp_path / "paper"
        path.write_bytes(content)
        result = meditron("parse", path)
        assert result.code == 1
        assert tool in result.err
