"""Overlap of finetuning rows with evaluation questions: both rules, and the stage's report of them."""

import gzip
import json

import pytest

from meditron.core.errors import InputError, RecipeError
from meditron.store.jsonl import JsonlWriter, read_jsonl
from meditron.store.manifest import Artifact
from meditron.tasks.registry import open_task
from meditron.text.messages import Turn
from meditron.train.finetune import run
from meditron.train.overlap import OverlapFilter
from train.world import finetune_config

ASKED = (
    "A farmer of sixty with a swollen big toe and chalky nodules on both ears drinks much beer; "
    "which drug is it?"
)
EXAM = [
    {"id": "gout", "question": ASKED, "options": ["allopurinol", "insulin"], "gold": 0},
    {"id": "short", "question": "Which is it?", "options": ["colchicine", "warfarin"], "gold": 1},
]


@pytest.fixture
def exam(tmp_path):
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in EXAM))
    return path


def removed(exam, question, *, rules=("search", "8-grams"), answer="It is allopurinol."):
    filtered = OverlapFilter({str(exam): exam}, rules)
    turns = Turn("user", question), Turn("assistant", answer)
    assert filtered.removes("rows", "r1", question, turns) == any(
        source["removed"] for source in filtered.metrics()["sources"].values()
    )
    return filtered.metrics()["sources"]["rows"]["by_rule"]


def test_each_rule_finds_what_it_is_for(exam):
    assert removed(exam, ASKED) == {"8-grams": 1, "search": 1}
    assert removed(exam, f"Question 7: {ASKED.upper()}") == {"8-grams": 1, "search": 1}
    # Words changed all over the text: a sequence of eight words is nowhere the same, the question still is.
    edited = " ".join("X" if n % 7 == 6 else word for n, word in enumerate(ASKED.split()))
    assert removed(exam, edited) == {"search": 1}
    # A part of the question, which is not long enough for the search.
    assert removed(exam, " ".join(ASKED.split()[:10])) == {"8-grams": 1}
    # The question in an answer is found by the search only: the rule of 8-grams compares what is asked.
    assert removed(exam, "Give an example.", answer=f"{ASKED} Allopurinol.") == {"search": 1}
    assert removed(exam, "What is the treatment of gout in a farmer of sixty with a swollen big toe?") == {}
    assert removed(exam, "Which is it?") == {}
    assert removed(exam, ASKED, rules=("search",)) == {"search": 1}
    assert removed(exam, ASKED, rules=("8-grams",)) == {"8-grams": 1}


def test_the_share_of_8_grams_is_at_least_80_percent(exam):
    words = ASKED.split()
    grams = len(words) - 7
    # `n` further words add `n` sequences that are not in the question.
    for further in range(8):
        question = f"{ASKED} {' '.join(f'w{n}' for n in range(further))}"
        expected = grams / (grams + further) >= 0.8
        assert bool(removed(exam, question, rules=("8-grams",))) == expected


def test_medqa_in_training_is_found_by_its_own_test_questions(shared):
    """Each question of the test split is found in its copy; in the training split some have variants."""
    folder = shared / "data/medqa-usmle"
    exam = folder / "test_4options.first1000.jsonl.gz"
    filtered = OverlapFilter({str(exam): exam}, ("search", "8-grams"))
    with gzip.open(folder / "test_5options.first1000.jsonl.gz", "rt") as file:
        copies = [json.loads(line)["question"] for line in file][:300]
    train = open_task(str(folder / "train_4options.focused1030.json.gz")).rows("train")
    for source, texts in (("copies", copies), ("train", [question.text for question in train])):
        for number, text in enumerate(texts):
            filtered.removes(source, str(number), text, [Turn("user", text)])
    counts = filtered.metrics()["sources"]
    assert counts["copies"]["removed"] == counts["copies"]["read"] == 300
    # Variants of six test questions, by reading them: another age, another sport, one sentence less.
    assert counts["train"]["removed"] == 6
    assert counts["train"]["by_rule"] == {"8-grams": 1, "search": 6}


def test_the_stage_leaves_the_rows_out_and_reports_them(answers, exam, tmp_path, capsys):
    path = tmp_path / "chat.jsonl"
    with JsonlWriter(path) as file:
        for row in read_jsonl(answers["rows"].path):
            file.write(row)
        for copy in (ASKED, f"Please answer: {ASKED}"):
            file.write({"id": copy[:6], "messages": [
                {"role": "user", "content": copy}, {"role": "assistant", "content": "It is allopurinol."}
            ]})  # fmt: skip
    out = tmp_path / "out"
    inputs = {
        "base": answers["base"],
        "rows": Artifact("rows", path, "x"),
        "./exam.jsonl": Artifact("e", exam, "y"),
    }
    metrics = run(finetune_config(epochs=1, decontaminate=("./exam.jsonl",)), inputs, out)
    both = {"8-grams": 2, "search": 2}
    assert metrics["overlap"] == {
        "rules": ["search", "8-grams"],
        "benchmarks": {"exam": 2},
        "sources": {"chat": {"read": 62, "removed": 2, "by_rule": both, "by_benchmark": {"exam": 2}}},
    }
    assert json.loads((out / "overlap.json").read_text()) == metrics["overlap"]
    assert list(read_jsonl(out / "overlap.jsonl"))[-2:] == [
        {"id": "Please", "source": "chat", "rule": "8-grams", "benchmark": "exam", "share": 0.8824},
        {
            "id": "Please", "source": "chat", "rule": "search", "benchmark": "exam", "question": "gout",
            "kind": "question",
        },
    ]  # fmt: skip
    assert sum(metrics["rows"].values()) == 60
    assert not {"A farm", "Please"} & {row["id"] for row in read_jsonl(out / "rows.jsonl.zst")}
    page = (out / "report.html").read_text()
    assert "Overlap with evaluation questions" in page
    assert "8-grams 2, search 2" in page
    trained = metrics["rows"]["train"]
    assert f"{trained} rows of" in (said := capsys.readouterr().err)
    assert f"{metrics['answer_tokens']:,} of them in the loss" in said


def test_two_benchmarks_of_one_name_are_both_searched(exam, tmp_path):
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "exam.jsonl"
    second.write_text(json.dumps(EXAM[1]) + "\n")
    filtered = OverlapFilter({str(exam): exam, str(second): second}, ("8-grams",))
    assert filtered.removes("rows", "r1", ASKED, [Turn("user", ASKED)])
    assert filtered.metrics()["benchmarks"] == {"exam": 3}


def test_no_row_after_the_last_one_is_read(answers, exam, tmp_path):
    inputs = answers | {"./exam.jsonl": Artifact("e", exam, "y")}
    config = finetune_config(epochs=1, decontaminate=("./exam.jsonl",), limit=10, heldout=0.3)
    metrics = run(config, inputs, tmp_path / "out")
    assert metrics["rows"]["train"] == 10
    [source] = metrics["overlap"]["sources"].values()
    assert source["read"] == sum(metrics["rows"].values())


def test_pairs_that_overlap_are_left_out(answers, exam, tmp_path):
    path = tmp_path / "pairs.jsonl"
    with JsonlWriter(path) as file:
        for number in range(8):
            prompt = ASKED if number == 5 else f"What is number {number}?"
            file.write({"id": str(number), "prompt": prompt, "chosen": "It is good.", "rejected": "No."})
    inputs = {
        "base": answers["base"],
        "rows": Artifact("rows", path, "x"),
        "./exam.jsonl": Artifact("e", exam, "y"),
    }
    config = finetune_config(
        method="dpo", epochs=1, decontaminate=("./exam.jsonl",), template="chatml", heldout=0.0, batch_size=4
    )
    metrics = run(config, inputs, tmp_path / "out")
    assert metrics["pairs"]["train"] == 7
    assert metrics["overlap"]["sources"]["pairs"]["removed"] == 1
    limited = run(config.model_copy(update={"limit": 4}), inputs, tmp_path / "limited")
    assert limited["overlap"]["sources"]["pairs"]["read"] == limited["pairs"]["train"] == 4
    assert "Overlap with evaluation questions" in (tmp_path / "out/report.html").read_text()


def test_a_damaged_file_of_questions_and_rows_that_all_overlap_are_errors(answers, exam, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"question": ASKED, "answer": "Allopurinol."}))
    inputs = {
        "base": answers["base"],
        "rows": Artifact("rows", path, "x"),
        "./exam.jsonl": Artifact("e", exam, "y"),
    }
    config = finetune_config(epochs=1, decontaminate=("./exam.jsonl",))
    with pytest.raises(
        RecipeError, match="chat has no row to train on; 1 of 1 rows overlap with evaluation questions"
    ):
        run(config, inputs, tmp_path / "out")
    exam.write_text('{"question": "q"}')
    with pytest.raises(InputError, match=r"exam\.jsonl"):
        run(config, inputs, tmp_path / "out")
