"""The corpus stage with benchmarks: what is removed, kept, listed and counted; workers, kills, bad files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError
from meditron.corpus.build import run
from meditron.corpus.config import CorpusConfig
from meditron.store.contamination import read_contamination
from meditron.store.corpus import read_corpus
from meditron.store.files import write_json
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Artifact

from ..test_build import digest

QUESTIONS = [
    {
        "id": "pain",
        "question": "A man has had crushing chest pain for two hours. Which drug lowers his risk?",
        "options": ["Aspirin", "Insulin"],
        "answer": "A",
    },
    {"id": "bone", "question": "Osteoclasts", "options": ["Resorb bone", "Make bone"], "answer": "A"},
]
FILLER = "Document {0} speaks of {1} and of nothing else, at some length. " * 3


def filler(number: int) -> str:
    return FILLER.format(number, number * number)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    leak = QUESTIONS[0]["question"]
    texts = {f"clean:{n}": filler(n) for n in range(60)}
    texts |= {"leak:1": f"{filler(90)} {leak} {filler(91)}", "leak:2": f"{filler(92)} {leak}"}
    texts |= {"edit:1": f"{filler(93)} {str(leak).replace('two', 'three')}"}
    texts |= {"quiz:1": f"{filler(94)} Osteoclasts: A. Resorb bone. B. Make bone."}
    texts |= {"copy:1": texts["leak:1"], "short:1": "Osteoclasts."}
    rows = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "docs.jsonl").write_text("\n".join(rows))
    files = {"docs": tmp_path / "docs.jsonl", "./bench.jsonl": tmp_path / "bench.jsonl"}
    return {name: Artifact(name, path, "0" * 64) for name, path in files.items()}


def config(**more: Any) -> CorpusConfig:
    table = {"sources": {"docs": {"from": "./docs.jsonl"}}, "decontaminate": ["./bench.jsonl"]}
    return CorpusConfig.model_validate(table | {"heldout": 0.0, "shard_documents": 9} | more)


def ids(corpus: Path, split: Any = "train") -> set[str]:
    return {document.id for document in read_corpus(corpus, split)}


def test_documents_with_questions_are_quarantined_listed_and_counted(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    out = tmp_path / "out"
    metrics = run(config(), inputs, out)
    assert ids(out) == {f"clean:{n}" for n in range(60)}
    assert metrics["sources"]["docs"]["dropped"] == {"contains a benchmark question": 5, "too short": 1}
    assert metrics["contamination"] == {
        "bench": {
            "questions": 2,
            "found": 2,
            "sources": {"docs": 5},
            "splits": {"removed": 5},
            "kinds": {"question": 4, "edited question": 1},
        }
    }
    hits = {row["document"]: row for row in read_jsonl(out / "contaminated.jsonl")}
    assert {name: (hit["question"], hit["kind"]) for name, hit in hits.items()} == {
        "leak:1": ("pain", "question"),
        "leak:2": ("pain", "question"),
        "edit:1": ("pain", "edited question"),
        "quiz:1": ("bone", "question"),
        "copy:1": ("pain", "question"),
    }
    assert {hit["split"] for hit in hits.values()} == {"removed"}
    whole = {row["id"]: row for row in read_jsonl(out / "quarantine.jsonl.zst")}
    assert whole["leak:2"]["text"].endswith(str(QUESTIONS[0]["question"]))
    assert [hit["question"] for hit in whole["leak:2"]["benchmark_hits"]] == ["pain"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Benchmark questions found in the sources" in page


def test_kept_documents_are_listed_with_their_splits(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    out = tmp_path / "out"
    metrics = run(config(contaminated="keep", heldout=0.5), inputs, out)
    splits = {row["document"]: row["split"] for row in read_jsonl(out / "contaminated.jsonl")}
    assert set(splits) == {"leak:1", "leak:2", "edit:1", "quiz:1"}  # and not the copy, which is dropped
    for split in ("train", "heldout"):
        assert {name for name, of in splits.items() if of == split} == ids(out, split) & set(splits)
    assert not list(read_jsonl(out / "quarantine.jsonl.zst"))
    assert sum(metrics["contamination"]["bench"]["splits"].values()) == 4
    assert all("benchmark_hits" not in row for path in out.glob("*/docs/*") for row in read_jsonl(path))
    record = read_contamination(out)
    assert record is not None
    assert [benchmark.name for benchmark in record.benchmarks] == ["bench"]
    assert len(record.trained) + len(record.removed) == 2


def test_without_benchmarks_there_are_no_files_about_them(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    out = tmp_path / "out"
    metrics = run(config(decontaminate=[]), inputs, out)
    assert "contamination" not in metrics
    names = {path.name for path in out.iterdir()}
    assert names == {"train", "drops.jsonl.zst", "report.html", "croissant.json"}
    assert read_contamination(out) is None


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    for workers in (1, 2):
        run(config(workers=workers), inputs, tmp_path / f"out{workers}")
    assert digest(tmp_path / "out1") == digest(tmp_path / "out2")


SCRIPT = """
import sys
from pathlib import Path
from meditron.corpus.build import run
from meditron.corpus.config import CorpusConfig
from meditron.store.manifest import Artifact
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
table = {"sources": {"docs": {"from": "./docs.jsonl"}}, "decontaminate": ["./bench.jsonl"]}
names = {"docs": folder / "docs.jsonl", "./bench.jsonl": folder / "bench.jsonl"}
inputs = {name: Artifact(name, path, "0" * 64) for name, path in names.items()}
run(CorpusConfig.model_validate(table | {"heldout": 0.0, "shard_documents": 9}), inputs, out)
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    run(config(), inputs, tmp_path / "whole")
    out = tmp_path / "killed"
    for pattern, count in (
        ("work/benchmarks.npz", 1),
        ("work/docs/*.index.npy", 3),
        ("work/docs/*.counts.json", 2),
    ):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(out)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list(out.glob(pattern))) < count:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(config(), inputs, out)
    assert digest(out) == digest(tmp_path / "whole")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the file is empty"),
        ('{"question": "Which?", "options": ["a", "b"], "gold": 7}', "line 1"),
        ("%PDF-1.4", "PDF"),
    ],
)
def test_a_bad_file_of_questions_names_file_and_place(
    tmp_path: Path, inputs: dict[str, Artifact], content: str, problem: str
) -> None:
    (tmp_path / "bench.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"bench\.jsonl") as error:
        run(config(), inputs, tmp_path / "out")
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["bench"], "no task 'bench'"),
        (["a/test.jsonl", "b/test.json.gz"], "would both be named 'test'"),
        (["./bench.jsonl", "./bench.jsonl"], "is listed twice"),
    ],
)
def test_unknown_benchmarks_and_files_of_one_name_are_refused(files: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(decontaminate=files)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.dictionaries(st.sampled_from(["benchmark", "kind", "split", "other"]), st.none() | st.text(max_size=3))
)
def test_a_damaged_record_of_hits_is_an_error(tmp_path: Path, row: dict[str, Any]) -> None:
    write_json(tmp_path / "decontamination.json", [])
    (tmp_path / "contaminated.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"contaminated\.jsonl \(line 1"):
        read_contamination(tmp_path)
