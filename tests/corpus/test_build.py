"""The corpus stage: copies, deletions, limits, damage, kills. The smoke recipe tests it on real files."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.corpus.build import run
from meditron.corpus.config import CorpusConfig
from meditron.corpus.task import run_described_task
from meditron.store.corpus import read_corpus
from meditron.store.files import content_digest
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Artifact


def artifacts(**paths: Path) -> dict[str, Artifact]:
    return {name: Artifact(name, path, "0" * 64) for name, path in paths.items()}


def config(inputs: dict[str, Artifact], **more: Any) -> CorpusConfig:
    return CorpusConfig.model_validate(
        {"sources": {name: {"from": str(artifact.path)} for name, artifact in inputs.items()}} | more
    )


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path: Path, *texts: str) -> Path:
    lines = [json.dumps({"id": f"{path.stem}:{n}", "text": text}) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def many(path: Path, count: int) -> Path:
    return rows(path, *(f"Document {n} speaks of {n * n} and of nothing else. " * 4 for n in range(count)))


def test_tasks_run_in_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no sbatch: the tasks are run by hand, as on another machine
    monkeypatch.chdir(tmp_path)
    many(Path("a.jsonl"), 3)
    Path("questions.jsonl").write_text(
        '{"question": "Which drug lowers the risk of a second infarction in men?", "options": ["a", "b"], '
        '"answer": "A"}\n'
    )
    inputs = artifacts(**{"a": Path("a.jsonl"), "questions.jsonl": Path("questions.jsonl")})
    settings = config(artifacts(a=Path("a.jsonl")), executor="slurm", decontaminate=["questions.jsonl"])
    with pytest.raises(UsageError, match="no sbatch"):
        run(settings, inputs, Path("out"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_described_task(tmp_path / "out/work/tasks/read.json", 0)
    assert len(list((tmp_path / "out/work/a").glob("*.group.json"))) == 1


def test_copies_across_sources(tmp_path: Path) -> None:
    shared = "A text that stands in both of the sources. " * 4
    first = rows(tmp_path / "a.jsonl", *(f"{n} {shared}" for n in range(60)))
    second = rows(tmp_path / "b.jsonl", *(f"{n}  {shared.upper()}" for n in range(60)))
    inputs = artifacts(a=first, b=second)
    metrics = run(config(inputs, heldout=0.3), inputs, tmp_path / "out")
    assert metrics["sources"]["a"]["kept"] + metrics["sources"]["b"]["kept"] == 60
    reasons = {drop["reason"] for drop in read_jsonl(tmp_path / "out/drops.jsonl.zst")}
    assert reasons == {"copy of another document"}
    sides = {
        split: {t.content_sha256 for t in read_corpus(tmp_path / "out", split)}
        for split in ("train", "heldout")
    }
    assert not sides["train"] & sides["heldout"]
    assert {text.source for text in read_corpus(tmp_path / "out", "heldout")} == {"a"}


def test_files_of_one_name_have_documents_of_their_own(tmp_path: Path) -> None:
    for number, folder in enumerate(("2020", "2021/more", "Notes", "notes")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "notes.txt").write_text(f"Note {number}, at some length. " * 9)
    inputs = artifacts(notes=tmp_path / "in")
    run(config(inputs, heldout=0.0), inputs, tmp_path / "out")
    assert [text.id for text in read_corpus(tmp_path / "out", "train")] == [
        "text:2020/notes.txt",
        "text:2021/more/notes.txt",
        "text:Notes/notes.txt",
        "text:notes/notes.txt",
    ]


@pytest.mark.parametrize("heldout", [0.0, 0.5, 0.99])
def test_ids_repeated_in_two_files_are_numbered(tmp_path: Path, heldout: float) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for shard in ("a", "b"):
        # A `version` of rows that are no citations says nothing about other rows of their id.
        rows = ({"id": n, "version": 1, "text": f"Shard {shard}, document {n * n}. " * 9} for n in range(40))
        lines = [json.dumps(row) for row in rows]
        (folder / f"{shard}.jsonl").write_text("\n".join([*lines, lines[3].upper().replace("TEXT", "text")]))
    inputs = artifacts(rows=folder)
    metrics = run(config(inputs, heldout=heldout, shard_documents=7), inputs, tmp_path / "out")
    ids = [text.id for split in ("train", "heldout") for text in read_corpus(tmp_path / "out", split)]
    assert len(set(ids)) == len(ids) == metrics["sources"]["rows"]["kept"] == 80
    assert {"0", "0#2", "39#2"} <= set(ids)


def test_ids_repeated_in_two_sources_are_numbered(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("a", "b")}
    for name, path in paths.items():
        path.write_text("\n".join(json.dumps({"id": n, "text": f"{name} of {n}. " * 30}) for n in range(40)))
    inputs = artifacts(**paths)
    run(config(inputs, heldout=0.5), inputs, tmp_path / "out")
    ids = [text.id for split in ("train", "heldout") for text in read_corpus(tmp_path / "out", split)]
    assert len(set(ids)) == len(ids) == 80


def test_the_split_depends_on_the_text_alone(tmp_path: Path) -> None:
    lines = [f"Document {n} speaks of {n * n} and of nothing else. " * 4 for n in range(90)]
    sides = []
    for name, chosen in (("a", lines), ("b", [line.upper() + " " for line in reversed(lines)])):
        inputs = artifacts(a=rows(tmp_path / f"{name}.jsonl", *chosen))
        run(config(inputs, heldout=0.3), inputs, tmp_path / name)
        sides.append({text.content_sha256 for text in read_corpus(tmp_path / name, "heldout")})
    assert sides[0] == sides[1]
    assert 10 < len(sides[0]) < 50


def test_files_without_documents_are_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / ".git").mkdir(parents=True)
    (folder / "__MACOSX").mkdir()
    many(folder / "part.jsonl", 3)
    (folder / "empty.jsonl").touch()
    names = ["README.txt", "readme", "LICENSE", "part.jsonl.md5", "part.sha256", "SHA256SUMS", "md5sum.txt"]
    names += [
        "dump-20240101-md5sums.txt",
        "checksums.txt",
        ".DS_Store",
        "Thumbs.db",
        ".git/HEAD",
        "__MACOSX/._part.jsonl",
    ]
    for name in names:
        (folder / name).write_text("Whatever stands here is no document of the source, however long. " * 9)
    inputs = artifacts(a=folder)
    metrics = run(config(inputs), inputs, tmp_path / "out")
    assert metrics["sources"]["a"]["kept"] == 3
    assert metrics["sources"]["a"]["skipped"] == {
        "checksum file": 6,
        "README or licence": 3,
        "hidden file": 2,
        "hidden folder": 1,
        "file of the operating system": 1,
        "empty file": 1,
    }


def test_text_among_structured_files_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    many(folder / "a.jsonl", 3)
    (folder / "terms.txt").write_text("These are the terms under which the data may be used. " * 9)
    inputs = artifacts(a=folder)
    with pytest.raises(InputError, match=r"terms\.txt: plain text in a folder of jsonl files") as raised:
        run(config(inputs), inputs, tmp_path / "out")
    assert 'exclude = ["terms.txt"]' in str(raised.value.hint)
    (folder / "paper.rtf").write_bytes(b"{\\rtf1 text}")
    with pytest.raises(InputError, match=r"paper\.rtf: an RTF file") as raised:
        run(config(inputs), inputs, tmp_path / "out")
    assert 'exclude = ["paper.rtf"]' in str(raised.value.hint)
    for chosen in ({"include": ["*.jsonl"]}, {"exclude": ["terms.*", "*.rtf"]}):
        sources = {"a": {"from": str(folder), **chosen}}
        metrics = run(CorpusConfig.model_validate({"sources": sources}), inputs, tmp_path / f"{len(chosen)}")
        assert metrics["sources"]["a"]["read"] == 3


def test_include_globs_select_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for year in ("2020", "2021"):
        (folder / year).mkdir(parents=True)
        rows(folder / year / "a.jsonl", f"A document of {year}, and nothing but that. " * 4)
    inputs = artifacts(a=folder)
    sources = {"a": {"from": str(folder), "include": ["2021/*"]}}
    run(CorpusConfig.model_validate({"sources": sources, "heldout": 0}), inputs, tmp_path / "out")
    (text,) = read_corpus(tmp_path / "out", "train")
    assert "2021" in text.text
    sources["a"]["include"] = ["2022/*"]
    with pytest.raises(SourceError, match="has no file in it") as raised:
        run(CorpusConfig.model_validate({"sources": sources}), inputs, tmp_path / "none")
    assert "2 not included" in str(raised.value.hint)
    file = artifacts(a=folder / "2020/a.jsonl")
    with pytest.raises(SourceError, match="`include` and `exclude` apply to folders"):
        run(CorpusConfig.model_validate({"sources": sources}), file, tmp_path / "file")


def test_links_and_names_beyond_utf8_are_read(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for name in (b"caf\xe9.txt", "café.txt".encode()):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(f"A note of the name {name!r}. " * 9)
    (elsewhere / "far.txt").write_text("A note that lies in another folder, linked. " * 9)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "near.txt").symlink_to(elsewhere / "far.txt")
    (elsewhere / "loop").symlink_to(folder)
    before = content_digest(folder)
    inputs = artifacts(a=folder)
    metrics = run(config(inputs, heldout=0), inputs, tmp_path / "out")
    assert metrics["sources"]["a"]["dropped"] == {"copy of another document": 1}
    assert sorted(text.id for text in read_corpus(tmp_path / "out", "train")) == [
        "text:caf\\xe9.txt",
        "text:café.txt",
        "text:linked/far.txt",
    ]
    (elsewhere / "far.txt").write_text("Changed.")
    assert content_digest(folder) != before
    Path(os.fsdecode(os.fsencode(folder) + b"/b\xe9.rtf")).write_bytes(b"{\\rtf1 text}")
    with pytest.raises(InputError, match=r"in/b\\udce9\.rtf: an RTF file") as raised:
        run(config(inputs), inputs, tmp_path / "again")
    assert str(raised.value).encode()
    Path(os.fsdecode(os.fsencode(folder) + b"/b\xe9.rtf")).unlink()
    (elsewhere / "far.txt").unlink()
    with pytest.raises(InputError, match=r"near\.txt: a link to a file that does not exist"):
        run(config(inputs), inputs, tmp_path / "again")


@pytest.mark.parametrize("source_format", [None, "text"])
def test_included_links_to_nothing_and_pipes_are_named(tmp_path: Path, source_format: str | None) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    inputs = artifacts(a=folder)
    sources = {"a": {"from": str(folder), "include": ["*.txt"], "format": source_format}}
    (folder / "near.txt").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"near\.txt: a link to a file that does not exist"):
        run(config(inputs, sources=sources), inputs, tmp_path / "out")
    (folder / "near.txt").unlink()
    os.mkfifo(folder / "pipe.txt")
    with pytest.raises(InputError, match=r"pipe\.txt: not a regular file"):  # to open it would wait for ever
        run(config(inputs, sources=sources), inputs, tmp_path / "out")


def test_a_source_without_documents_is_refused(tmp_path: Path) -> None:
    pages = "<page><title>T</title><ns>1</ns><id>1</id><revision><text>T</text></revision></page>"
    (tmp_path / "a.xml").write_text(f"<mediawiki>{pages}</mediawiki>")
    deletion = "<DeleteCitation><PMID>1</PMID><PMID>2</PMID></DeleteCitation>"
    (tmp_path / "b.xml").write_text(f"<PubmedArticleSet>{deletion}</PubmedArticleSet>")
    fine = many(tmp_path / "c.jsonl", 3)
    for name, entries in (("a", "only 1 other namespace"), ("b", "only 2 deletions")):
        inputs = artifacts(good=fine, bad=tmp_path / f"{name}.xml")
        with pytest.raises(InputError, match=rf"{name}\.xml: source 'bad' has no documents, {entries}"):
            run(config(inputs), inputs, tmp_path / f"out-{name}")


def test_a_source_of_which_nothing_is_kept_gives_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, short = many(tmp_path / "a.jsonl", 3), rows(tmp_path / "b.jsonl", "Short.")
    inputs = artifacts(a=fine, b=short)
    run(config(inputs), inputs, tmp_path / "out")
    assert "source 'b' keeps no document: 1 too short" in " ".join(capsys.readouterr().err.split())
    inputs = artifacts(b=short)
    with pytest.raises(
        InputError, match=r"source 'b' keeps no document \(1 too short\), and no other source keeps any"
    ):
        run(config(inputs), inputs, tmp_path / "none")


def test_long_documents_end_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pieces", "shards"):
        monkeypatch.setattr(f"meditron.corpus.{module}.MAX_CHARACTERS", 1_000)
    inputs = artifacts(a=many(tmp_path / "a.jsonl", 30))
    run(config(inputs, heldout=0), inputs, tmp_path / "out")
    assert len(list((tmp_path / "out/train/a").iterdir())) == 5


def test_deletions_reach_other_files_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "baseline"
    folder.mkdir()
    article = (
        '<PubmedArticle><MedlineCitation><PMID Version="1">{0}</PMID><Article><Journal><JournalIssue>'
        "<PubDate><Year>2000</Year></PubDate></JournalIssue></Journal><ArticleTitle>T{0}</ArticleTitle>"
        "<Abstract><AbstractText>{1}</AbstractText></Abstract><Language>eng</Language></Article>"
        "</MedlineCitation></PubmedArticle>"
    )
    long = [f"Abstract {n} has enough letters to be kept in a corpus of text. " * 3 for n in range(4)]
    for name, body in {
        "1.xml.gz": article.format(11, long[0]) + article.format(12, long[1]),
        "2.xml.gz": article.format(13, long[2])
        + '<DeleteCitation><PMID Version="1">12</PMID></DeleteCitation>',
    }.items():
        data = f"<PubmedArticleSet>{body}</PubmedArticleSet>".encode()
        (folder / name).write_bytes(gzip.compress(data))
    (folder / "1.xml.gz.md5").write_text("x")
    inputs = artifacts(pubmed=folder)
    metrics = run(config(inputs, heldout=0.0), inputs, tmp_path / "out")
    assert metrics["sources"]["pubmed"]["dropped"] == {"deleted by its source": 1}
    assert [text.id for text in read_corpus(tmp_path / "out", "train")] == ["pubmed:11", "pubmed:13"]
    # Deletions hold also if they are behind the limit.
    metrics = run(config(inputs, heldout=0.0, limit=2), inputs, tmp_path / "limited")
    assert metrics["sources"]["pubmed"]["read"] == 2
    assert [text.id for text in read_corpus(tmp_path / "limited", "train")] == ["pubmed:11"]


def test_the_same_bytes_from_any_number_of_workers(tmp_path: Path) -> None:
    inputs = artifacts(a=many(tmp_path / "a.jsonl", 90), b=many(tmp_path / "b.jsonl", 70))
    for name, workers in (("one", 1), ("two", 2)):
        run(config(inputs, shard_documents=20, workers=workers), inputs, tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_a_limit_counts_over_all_files_of_a_source(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    many(folder / "a.jsonl", 15)
    rows(folder / "b.jsonl", *(f"Another text, number {n}, of some length. " * 4 for n in range(15)))
    inputs = artifacts(both=folder)
    metrics = run(config(inputs, limit=20, shard_documents=4), inputs, tmp_path / "out")
    assert metrics["sources"]["both"]["read"] == 20


def test_a_limit_reads_only_the_files_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meditron.corpus.files._GROUP_FILES", 5)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(60):
        rows(
            folder / f"{number:02d}.jsonl",
            f"Document {number} speaks of {number**2} and of little else. " * 4,
        )
    for number in range(20, 60):
        (folder / f"{number:02d}.jsonl").write_bytes(b"damaged \0\xff\n")
    inputs = artifacts(notes=folder)
    for name, workers in (("one", 1), ("three", 3)):
        metrics = run(config(inputs, limit=16, workers=workers), inputs, tmp_path / name)
        assert metrics["sources"]["notes"]["read"] == 16
    assert digest(tmp_path / "one") == digest(tmp_path / "three")
    for number in range(16, 60):
        (folder / f"{number:02d}.jsonl").unlink()
    run(config(inputs), inputs, tmp_path / "all")
    assert digest(tmp_path / "all/train") == digest(tmp_path / "one/train")
    assert digest(tmp_path / "all/heldout") == digest(tmp_path / "one/heldout")


def test_a_damaged_file_behind_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    many(tmp_path / "folder/a.jsonl", 15)
    (tmp_path / "folder/b.jsonl").write_bytes(b"damaged \0\xff\n")
    inputs = artifacts(notes=tmp_path / "folder")
    assert run(config(inputs, limit=1), inputs, tmp_path / "out")["sources"]["notes"]["read"] == 1
    with pytest.raises(InputError, match=r"b\.jsonl"):
        run(config(inputs, limit=16), inputs, tmp_path / "more")


def test_a_version_in_meta_and_a_retraction_other_than_true_have_no_effect(tmp_path: Path) -> None:
    metas: list[dict[str, Any]] = [{"version": v, "retracted": "no"} for v in ("v2", 1.5, -1, 1 << 40, True)]
    lines = [
        json.dumps({"id": "one", "text": f"Text {n} of the same id, {n * n}. " * 9, "meta": meta})
        for n, meta in enumerate(metas)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    inputs = artifacts(a=path)
    assert run(config(inputs), inputs, tmp_path / "out")["sources"]["a"]["kept"] == len(metas)


def test_the_corpus_records_labelled_sections(tmp_path: Path) -> None:
    sections = {"BACKGROUND": "Little is known of this, so far. ", "METHODS": "We asked 12 of them, twice. "}
    labelled = "".join(
        f'<AbstractText Label="{label.title()}" NlmCategory="{label}">{text * 4}</AbstractText>'
        for label, text in sections.items()
    )
    path = tmp_path / "1.xml"
    path.write_text(
        '<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID Version="1">11</PMID><Article>'
        f"<ArticleTitle>On it.</ArticleTitle><Abstract>{labelled}</Abstract><Language>eng</Language>"
        "</Article></MedlineCitation></PubmedArticle></PubmedArticleSet>",
        encoding="utf-8",
    )
    inputs = artifacts(pubmed=path, plain=many(tmp_path / "a.jsonl", 1))
    run(config(inputs, heldout=0.0), inputs, tmp_path / "out")
    plain, text = read_corpus(tmp_path / "out", "train")
    assert [(text.text[part.start : part.end], part.label, part.category) for part in text.sections] == [
        ((sections[label] * 4).strip(), label.title(), label) for label in sections
    ]
    assert plain.sections == ()
    assert all("parts" not in row for row in read_jsonl(plain.file))


def test_damage_in_a_source_is_reported_with_file_and_line(tmp_path: Path) -> None:
    path = many(tmp_path / "a.jsonl", 30)
    path.write_text(path.read_text(encoding="utf-8") + "\n{broken", encoding="utf-8")
    inputs = artifacts(a=path)
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"a\.jsonl \(line 31\)"):
            run(config(inputs, shard_documents=10, workers=workers), inputs, tmp_path / f"out{workers}")


SCRIPT = """
import sys
from pathlib import Path
from meditron.corpus.build import run
from meditron.corpus.config import CorpusConfig
from meditron.corpus.task import run_described_task
from meditron.store.manifest import Artifact
source, out = Path(sys.argv[1]), Path(sys.argv[2])
settings = {"shard_documents": 50, "near_dedup": {"threshold": 0.8}}
config = CorpusConfig.model_validate({"sources": {"a": {"from": str(source)}}, **settings})
run(config, {"a": Artifact("a", source, "0" * 64)}, out)
"""


@pytest.mark.slow
def test_a_resumed_run_rewrites_unfinished_pieces_only(tmp_path: Path) -> None:
    source = many(tmp_path / "a.jsonl", 2_000)
    command = [sys.executable, "-c", SCRIPT, str(source)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    out = tmp_path / "killed"
    stamps: dict[Path, int] = {}
    for suffix, count in (("index.npy", 12), ("counts.json", 5)):
        process = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list(out.glob(f"work/a/*.{suffix}"))) < count:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = {path: path.stat().st_mtime_ns for path in out.glob("work/a/*.index.npy")}
        assert stamps.items() <= done.items(), "a finished shard was made again"
        stamps = done
    assert len(stamps) == 40
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert digest(out) == digest(tmp_path / "whole")


def test_options_of_a_source_reach_the_reader(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    prose = "Give antibiotics within one hour of the recognition of sepsis in adults and children. " * 3
    page = f"<!doctype html><title>Sepsis</title><p id=a>{prose}<p class=x>Related pages."
    (folder / "sepsis.html").write_text(page)
    (folder / "missing.html").write_text("<!doctype html><title>404 Not Found</title><p>No such page.")
    inputs = artifacts(a=folder)
    sources = {"a": {"from": str(folder), "rules": {"drop": [".x"]}}}
    metrics = run(CorpusConfig.model_validate({"sources": sources, "heldout": 0}), inputs, tmp_path / "out")
    (document,) = read_corpus(tmp_path / "out", "train")
    assert document.id == "html:sepsis.html"
    assert "Related" not in document.text
    assert metrics["sources"]["a"]["skipped"] == {"error or login page": 1}
