"""The corpus: copies, deletions, limits, damage, kills. The smoke recipe holds it to real files."""

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

from meditron.corpus.build import run
from meditron.corpus.config import CorpusConfig
from meditron.ground.errors import InputError
from meditron.store.artifact import Artifact
from meditron.store.corpus import texts
from meditron.store.jsonl import read_jsonl


def artifacts(**paths: Path) -> dict[str, Artifact]:
    return {name: Artifact(name, path, "0" * 64) for name, path in paths.items()}


def config(inputs: dict[str, Artifact], **more: Any) -> CorpusConfig:
    return CorpusConfig.model_validate(
        {"sources": {name: {"from": str(one.path)} for name, one in inputs.items()}} | more
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


def test_copies_across_sources(tmp_path: Path) -> None:
    shared = "A text that stands in both of the sources. " * 4
    first = rows(tmp_path / "a.jsonl", *(f"{n} {shared}" for n in range(60)))
    second = rows(tmp_path / "b.jsonl", *(f"{n}  {shared.upper()}" for n in range(60)))
    inputs = artifacts(a=first, b=second)
    metrics = run(config(inputs, heldout=0.3), inputs, tmp_path / "out")
    assert metrics["sources"]["a"]["kept"] + metrics["sources"]["b"]["kept"] == 60
    reasons = {drop["reason"] for drop in read_jsonl(tmp_path / "out/drops.jsonl.zst")}
    assert reasons == {"copy of another document", "copy of a held-out document"}


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
    assert [text.id for text in texts(tmp_path / "out", "train")] == ["pubmed:11", "pubmed:13"]


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


def test_a_row_may_call_its_fields_as_medline_does(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = [{"version": v, "retracted": "no"} for v in ("v2", 1.5, -1, 1 << 40, True)]
    lines = [
        json.dumps({"id": "one", "text": f"Text {n} of the same id, {n * n}. " * 9, "meta": meta})
        for n, meta in enumerate(said)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    inputs = artifacts(a=path)
    assert run(config(inputs), inputs, tmp_path / "out")["sources"]["a"]["kept"] == len(said)


def test_labelled_sections_are_found_again_in_the_corpus(tmp_path: Path) -> None:
    said = {"BACKGROUND": "Little is known of this, so far. ", "METHODS": "We asked 12 of them, twice. "}
    labelled = "".join(
        f'<AbstractText Label="{label.title()}" NlmCategory="{label}">{text * 4}</AbstractText>'
        for label, text in said.items()
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
    plain, text = texts(tmp_path / "out", "train")
    assert [(text.text[part.start : part.end], part.label, part.category) for part in text.parts] == [
        ((said[label] * 4).strip(), label.title(), label) for label in said
    ]
    assert plain.parts == ()
    assert all("parts" not in row for row in read_jsonl(plain.file))


def test_damage_in_a_source_is_told_by_name(tmp_path: Path) -> None:
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
from meditron.store.artifact import Artifact
source, out = Path(sys.argv[1]), Path(sys.argv[2])
config = CorpusConfig.model_validate({"sources": {"a": {"from": str(source)}}, "shard_documents": 50})
run(config, {"a": Artifact("a", source, "0" * 64)}, out)
"""


@pytest.mark.slow
def test_a_killed_run_redoes_unfinished_shards_only(tmp_path: Path) -> None:
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
