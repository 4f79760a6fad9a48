"""Archives read in place: their files are documents; hostile and damaged ones are refused by member."""

import gzip
import io
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from meditron.core.errors import InputError
from meditron.sources.containers import read_members
from meditron.sources.document import ReadLog
from meditron.sources.registry import find_source_format, format_name, open_source
from small_archives import write_archive

from .conftest import Medline, citation

TEXTS = {f"notes/{n}.txt": f"The text of note {n}, and what follows." for n in range(3)}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_the_files_of_an_archive_are_documents(tmp_path: Path, suffix: str) -> None:
    path = write_archive(tmp_path / f"set.{suffix}", TEXTS)
    documents = list(open_source(path))
    assert [document.id for document in documents] == [f"text:set.{suffix}!{name}" for name in TEXTS]
    assert [document.sections[0].text for document in documents] == list(TEXTS.values())
    assert format_name(find_source_format(path)) == "text"
    assert next(document.id for document in open_source(path, name="a/b")) == "text:a/b!notes/0.txt"


def test_a_tar_archive_may_be_compressed_with_zstd_and_follow_another(tmp_path: Path) -> None:
    first = write_archive(tmp_path / "a.tar", {"1.txt": "One text."}).read_bytes()
    second = write_archive(tmp_path / "b.tar", {"2.txt": "Another text."}).read_bytes()
    path = tmp_path / "both.tar.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(first + second))
    assert [document.sections[0].text for document in open_source(path)] == ["One text.", "Another text."]


def test_members_are_compressed_files_of_any_format(medline: Medline, tmp_path: Path) -> None:
    deleted = "<DeleteCitation><PMID>9</PMID></DeleteCitation>"
    sets = {
        "1.xml.gz": gzip.compress(medline(citation(1), citation(2)).read_bytes()),
        "2.xml": medline(citation(3), deleted).read_bytes(),
    }
    for suffix in ("zip", "tar.gz"):
        log = ReadLog()
        documents = list(open_source(write_archive(tmp_path / f"set.{suffix}", sets), "medline", log))
        assert [document.id for document in documents] == ["pubmed:1", "pubmed:2", "pubmed:3"]
        assert log.deleted == ["pubmed:9"]


def test_a_member_larger_than_what_can_be_read_again(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "Text {n} of a long file."}}\n' for n in range(90_000))
    for suffix in ("zip", "tar.gz"):
        path = write_archive(tmp_path / f"set.{suffix}", {"rows.jsonl": lines, "more.jsonl": '{"text": "x"}'})
        documents = [document.id for document in open_source(path)]
        assert len(documents) == 90_001
        assert documents[-1] == f"jsonl:set.{suffix}!more.jsonl:1"
        # The next member is found also if the one before was not read to its end.
        source = open_source(path)
        assert next(source).id.endswith("rows.jsonl:1")


def test_long_names_folders_and_links_in_tar_archives(tmp_path: Path) -> None:
    long = "/".join(["a-very-long-name-of-a-folder"] * 9) + "/größe.txt"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / "set.tar"
        with tarfile.open(path, "w", format=format) as archive:
            folder, link = tarfile.TarInfo("./notes"), tarfile.TarInfo("link.txt")
            folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(folder)
            archive.addfile(link)
            for name in (long, "./notes/1.txt"):
                entry = tarfile.TarInfo(name)
                entry.size = 9
                archive.addfile(entry, io.BytesIO(b"some text"))
        log = ReadLog()
        documents = list(open_source(path, log=log))
        assert [document.id for document in documents] == [f"text:set.tar!{long}", "text:set.tar!notes/1.txt"]
        assert log.skipped == {"link in an archive": 1}


@pytest.mark.shared
def test_members_are_those_of_tarfile(shared: Path) -> None:
    for path in ("pmc-jats/plos-starter.first97.tar.gz", "medquad/medquad.first80pct.tar.gz"):
        with tarfile.open(shared / "data" / path) as archive:
            reference = [
                (entry.name.removeprefix("./"), file.read())
                for entry in archive
                if (file := archive.extractfile(entry))
            ]
        members = read_members(shared / "data" / path, "tar", Counter())
        assert [(member.path, member.read()) for member in members] == reference


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "..\\out.txt"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    for suffix in ("zip", "tar.gz"):
        path = write_archive(tmp_path / f"set.{suffix}", {"1.txt": "Some text.", name: "Other text."})
        with pytest.raises(InputError, match=r"set\.\w+.*out\.txt\): .*trusted"):
            list(open_source(path))


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    """Unpacked, the second file replaces the first; read in place, both would be documents."""
    path = write_archive(tmp_path / "set.tar", {"1.txt": "Some text."})
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("1.txt")
        entry.size = 9
        archive.addfile(entry, io.BytesIO(b"some text"))
    with pytest.raises(InputError, match=r"set\.tar!1\.txt: the name occurs twice in the archive"):
        list(open_source(path))


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_folder_called_dot_is_not_hidden(tmp_path: Path, suffix: str) -> None:
    path = write_archive(tmp_path / f"set.{suffix}", {"./1.txt": "Some text.", "a/./2.txt": "Other text."})
    assert [document.sections[0].text for document in open_source(path)] == ["Some text.", "Other text."]


@pytest.mark.parametrize("options", [["--format=v7"], ["--format=gnu", "--label=set"]])
def test_archives_of_old_and_labelled_formats(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "1.txt").write_text("Some text.")
    path = tmp_path / "set.tar"
    subprocess.run(["tar", *options, "-C", tmp_path, "-cf", path, "1.txt"], check=True)
    assert [document.sections[0].text for document in open_source(path)] == ["Some text."]


def test_damage_is_reported_with_archive_and_member(tmp_path: Path) -> None:
    texts = {name: f"{text} " * 4_000 for name, text in TEXTS.items()}
    whole = write_archive(tmp_path / "set.tar", texts).read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[: 512 + 9_000])
    with pytest.raises(InputError, match=r"cut\.tar \(notes/0\.txt\): the archive is cut off"):
        list(open_source(path))
    end = whole.rindex(b"\0" * 1024 + b"", 0, len(whole) - 512)
    path.write_bytes(whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 512])
    assert end
    with pytest.raises(InputError, match=r"cut\.tar \(notes/2\.txt\): the archive is cut off after this"):
        list(open_source(path))
    at = whole.index(b"notes/1.txt")
    path.write_bytes(whole[:at] + b"N" + whole[at + 1 :])
    with pytest.raises(InputError, match=r"cut\.tar \(notes/0\.txt\): a damaged header"):
        list(open_source(path))
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(gzip.compress(whole)[:-900])
    with pytest.raises(InputError, match=r"cut\.tar\.gz \(notes/\d\.txt\): the compressed data are cut off"):
        list(open_source(path))
    path = write_archive(tmp_path / "set.zip", texts)
    packed = bytearray(path.read_bytes())
    packed[packed.index(b"notes/1.txt") + 40] ^= 255
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"set\.zip \(notes/1\.txt\): damaged"):
        list(open_source(path))
    bad = write_archive(tmp_path / "rows.tar.gz", {"a.jsonl": '{"text": "a"}\n{broken'})
    with pytest.raises(InputError, match=r"rows\.tar\.gz!a\.jsonl \(line 2\): not JSON"):
        list(open_source(bad))


def test_bombs_in_archives_take_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(40 << 20)))
    zipped = tmp_path / "bomb.zip"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("long.txt", b"a" * (40 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.tar\.gz .*: an extended header of 8,589,934,592 bytes"):
        list(open_source(path))
    with pytest.raises(InputError, match=r"bomb\.zip!long\.txt: longer than 24 MiB"):
        list(open_source(zipped))
    assert tracemalloc.get_traced_memory()[1] < 90 << 20
    tracemalloc.stop()


def test_archives_without_a_file_to_read_and_within_archives(tmp_path: Path) -> None:
    inner = write_archive(tmp_path / "inner.zip", TEXTS).read_bytes()
    outer = write_archive(tmp_path / "outer.tar.gz", {"inner.zip": inner})
    with pytest.raises(InputError, match=r"outer\.tar\.gz!inner\.zip: an archive inside an archive"):
        list(open_source(outer))
    empty = write_archive(tmp_path / "empty.zip", {})
    assert list(open_source(empty)) == []
    with pytest.raises(InputError, match=r"empty\.zip: the archive contains no file to read"):
        find_source_format(empty)
    office = write_archive(tmp_path / "set.tar.gz", {"a.docx": write_docx(tmp_path / "a.zip")})
    with pytest.raises(InputError, match=r"set\.tar\.gz!a\.docx: a Word document") as raised:
        list(open_source(office))
    assert "docx2txt" in str(raised.value.hint)


def write_docx(path: Path) -> bytes:
    return write_archive(path, {"[Content_Types].xml": "<x/>", "word/document.xml": "<x/>"}).read_bytes()


def test_text_about_the_data_in_an_archive_is_refused(tmp_path: Path) -> None:
    members = {"a.jsonl": '{"text": "a"}', "terms.txt": "These are the terms of use, in plain words."}
    path = write_archive(tmp_path / "set.tar.gz", members)
    with pytest.raises(InputError, match=r"set\.tar\.gz!terms\.txt: plain text in a folder of jsonl files"):
        list(open_source(path))
