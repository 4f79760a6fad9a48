import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from meditron.core.errors import MeditronError, UsageError
from meditron.engine.torch_engine import TorchEngine
from meditron.evaluate.answers import answer_questions
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import LocalModel
from meditron.evaluate.prompts import encode_plain_prompt
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import RowsFile
from meditron.store.manifest import Artifact
from meditron.tasks.prompt_template import RenderedPrompt
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task
from meditron.text.tokenizer import load_tokenizer


class Reference:
    """Log-probabilities and ids as transformers has them, one pair a forward pass."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def ids(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """lm-eval's own boundary: `_encode_pair` of its version 0.4."""
        blanks = len(prompt) - len(prompt.rstrip())
        if blanks:
            prompt, continuation = prompt[:-blanks], prompt[-blanks:] + continuation
        given = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        whole = self.tokenizer(prompt + continuation, add_special_tokens=False)["input_ids"]
        return given, whole[len(given) :]

    def score(self, prompt: str, continuation: str) -> list[float]:
        given, behind = self.ids(prompt, continuation)
        with torch.no_grad():
            logp = self.model(torch.tensor([[*given, *behind]])).logits[0].log_softmax(-1)
        return [float(logp[len(given) - 1 + i, token]) for i, token in enumerate(behind)]

    def next_token(self, prompt: str) -> torch.Tensor:
        with torch.no_grad():
            ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            return self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Reference:
    return Reference(tiny)


def eval_set_of(task: Task, **options: Any) -> EvalSet:
    [eval_set] = EvalSet.from_task(task, EvalOptions.model_validate({"questions": 30} | options), seed=1)
    return eval_set


def prompts(eval_set: EvalSet, folder: Path) -> list[RenderedPrompt]:
    model = LocalModel("base", Artifact("base", folder, "digest"), "float32")
    return [prompt.rendered for prompt in eval_set.prompts(model)]


def answered(folder: Path, eval_set: EvalSet, out: Path, dtype: str = "float32") -> list[QuestionRow]:
    with (
        RowsFile(out / "rows.jsonl", QuestionRow) as file,
        LocalModel("base", Artifact("base", folder, "digest"), dtype) as model,
    ):
        return answer_questions(model, eval_set, file)


@pytest.mark.parametrize("template", ["letters", "texts"])
def test_scores_are_those_of_one_pair_a_row_in_transformers(
    tiny: Path, reference: Reference, task_file: Path, tmp_path: Path, template: str
) -> None:
    eval_set = eval_set_of(open_task(str(task_file), template=template))
    for row, prompt in list(zip(answered(tiny, eval_set, tmp_path), prompts(eval_set, tiny), strict=True))[
        ::4
    ]:
        given = [reference.score(prompt.prompt, c) for c in prompt.continuations]
        alone = [reference.score(prompt.unconditional_prompt, c) for c in prompt.continuations]
        sums = [sum(logp) for logp in given]
        assert row.scores["sum"] == pytest.approx(sums, abs=1e-4)
        lengths = [len(c.strip().encode()) for c in prompt.continuations]
        assert row.scores["bytes"] == pytest.approx(
            [s / n for s, n in zip(sums, lengths, strict=True)], abs=1e-4
        )
        less = [s - sum(a) for s, a in zip(sums, alone, strict=True)]
        assert row.scores["calibrated"] == pytest.approx(less, abs=1e-4)
        scored = zip(prompt.continuations, given, strict=True)
        first = {reference.ids(prompt.prompt, c)[1][0]: logp[0] for c, logp in scored}
        assert row.option_probability_mass == pytest.approx(sum(map(math.exp, first.values())), rel=1e-3)
        assert row.prediction == sums.index(max(sums))
        assert row.correct == (row.prediction == row.gold)


@pytest.mark.parametrize("template", ["letters", "texts"])
def test_scores_behind_solved_examples_are_those_of_one_pair_a_row_in_transformers(
    tiny: Path, reference: Reference, tmp_path: Path, template: str
) -> None:
    """Prompts that begin alike, which the engine reads once."""
    options = ["aspirin", "metformin hydrochloride"]
    path = tmp_path / "short.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": f"q{n}", "question": f"Case {n} takes", "options": options, "gold": n % 2})
            + "\n"
            for n in range(30)
        )
    )
    eval_set = eval_set_of(open_task(str(path), template=template), shots=2)
    for row, prompt in zip(answered(tiny, eval_set, tmp_path), prompts(eval_set, tiny), strict=True):
        assert not row.truncated
        given = [sum(reference.score(prompt.prompt, c)) for c in prompt.continuations]
        alone = [sum(reference.score(prompt.unconditional_prompt, c)) for c in prompt.continuations]
        assert row.scores["sum"] == pytest.approx(given, abs=1e-4)
        less = [s - a for s, a in zip(given, alone, strict=True)]
        assert row.scores["calibrated"] == pytest.approx(less, abs=1e-4)


def test_another_rule_changes_predictions_and_no_scores(
    tiny: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = open_task(str(task_file), template="texts")
    by_sum = answered(tiny, eval_set_of(task), tmp_path)
    monkeypatch.delattr(TorchEngine, "load")
    calibrated = answered(tiny, eval_set_of(task, rule="calibrated"), tmp_path)  # not computed again
    assert [row.scores for row in by_sum] == [row.scores for row in calibrated]
    assert [row.prediction for row in calibrated] == [row.best_option("calibrated") for row in by_sum]


def test_a_next_token_that_names_no_option_is_wrong(
    tiny: Path, reference: Reference, task_file: Path, tmp_path: Path
) -> None:
    eval_set = eval_set_of(open_task(str(task_file), template="letters"), methods=("next-token",))
    rows = answered(tiny, eval_set, tmp_path)
    for row, prompt in zip(rows, prompts(eval_set, tiny), strict=True):
        logp = reference.next_token(prompt.prompt)
        token = reference.tokenizer.decode([int(logp.argmax())])
        letters = [c.strip() for c in prompt.continuations]
        assert row.token == token
        assert row.prediction == (letters.index(token.strip()) if token.strip() in letters else None)
        assert row.correct == (row.prediction == row.gold)
    assert any(row.prediction is None for row in rows), "random weights name a letter always?"


@pytest.mark.parametrize(
    ("prompt", "continuation"),
    [
        ("Answer:", " A"),
        ("Answer: ", "A"),
        ("Answer:\n\n", "sepsis"),
        ("Sepsis needs anti", "biotics"),
        ("", "A"),
    ],
)
def test_prompt_and_continuation_are_split_as_in_lm_eval(
    tiny: Path, reference: Reference, prompt: str, continuation: str
) -> None:
    tokenizer = load_tokenizer(tiny)
    result = encode_plain_prompt(tokenizer, prompt, [continuation], 256)
    given, behind = reference.ids(prompt, continuation)
    # lm-eval's HFLM puts its prefix token before a text that nothing precedes: BOS, else EOS.
    assert result.prefix == (given or [reference.tokenizer.bos_token_id])
    assert result.continuations == [behind]


def test_a_prompt_that_does_not_fit_loses_its_beginning(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    prompt = "trial " * 300 + "Answer:"
    result = encode_plain_prompt(tokenizer, prompt, [" aspirin", " an antibiotic"], 256)
    longest = max(map(len, result.continuations))
    assert result.truncated
    assert result.prefix == tokenizer.encode(prompt)[-(256 - longest) :]
    assert not encode_plain_prompt(tokenizer, "Answer:", [" A"], 256).truncated


def test_a_continuation_without_tokens_is_refused(tiny: Path) -> None:
    with pytest.raises(MeditronError, match="0 tokens"):
        encode_plain_prompt(load_tokenizer(tiny), "Answer:", [""], 256)


def test_shots_are_drawn_by_the_seed_and_never_the_question_itself(tiny: Path, task_file: Path) -> None:
    task = open_task(str(task_file), template="letters")
    eval_set = eval_set_of(task, shots=3)
    assert eval_set.examples.drawn_questions == eval_set_of(task, shots=3).examples.drawn_questions
    assert len(eval_set.examples.drawn_questions) == 4
    texts = {question.id: question.text for question in task.rows("train")}
    for question, prompt in zip(eval_set.questions, prompts(eval_set, tiny), strict=True):
        shown = [shot.id for shot in eval_set.examples.drawn_questions if shot.id != question.id][:3]
        assert all(texts[id_] in prompt.prompt for id_ in shown)
        assert prompt.prompt.count("Answer:") == 4
        assert prompt.prompt.count(question.text) == 1 + sum(question.text in texts[i] for i in shown)
    with pytest.raises(UsageError, match="too few for 30 shots"):
        eval_set_of(task, shots=30)


def test_bfloat16_is_near_float32(tiny: Path, task_file: Path, tmp_path: Path) -> None:
    eval_set = eval_set_of(open_task(str(task_file), template="letters"))
    wide, narrow = (answered(tiny, eval_set, tmp_path, dtype) for dtype in ("float32", "bfloat16"))
    for a, b in zip(wide, narrow, strict=True):
        assert a.scores["sum"] == pytest.approx(b.scores["sum"], abs=0.3)
