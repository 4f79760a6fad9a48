import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from meditron.core.errors import MeditronError, UsageError
from meditron.engine.torch_engine import TorchEngine
from meditron.evaluate.answers import answer, encode
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import QuestionRow, RowsFile
from meditron.store.artifact import Artifact
from meditron.store.results import Mode, Rule
from meditron.tasks.prompt_template import Rendered
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
def theirs(tiny: Path) -> Reference:
    return Reference(tiny)


def exam(task: Task, *, mode: Mode = "options", rule: Rule = "sum", shots: int = 0, n: int = 30) -> EvalSet:
    [made] = EvalSet.of(task, questions=n, mode=mode, rule=rule, shots=shots, seed=1)
    return made


def prompts(asked: EvalSet, folder: Path) -> list[Rendered]:
    candidate = EvalModel("base", Artifact("base", folder, "digest"), "float32")
    return [each.rendered for each in asked.prompts(candidate)]


def answered(folder: Path, asked: EvalSet, out: Path, dtype: str = "float32") -> list[QuestionRow]:
    with (
        RowsFile(out / "rows.jsonl", QuestionRow) as file,
        EvalModel("base", Artifact("base", folder, "digest"), dtype) as candidate,
    ):
        return answer(candidate, asked, file)


@pytest.mark.parametrize("template", ["letters", "texts"])
def test_scores_are_those_of_one_pair_a_row_in_transformers(
    tiny: Path, theirs: Reference, task_file: Path, tmp_path: Path, template: str
) -> None:
    asked = exam(open_task(str(task_file), template=template))
    for row, prompt in list(zip(answered(tiny, asked, tmp_path), prompts(asked, tiny), strict=True))[::4]:
        given = [theirs.score(prompt.prompt, c) for c in prompt.continuations]
        alone = [theirs.score(prompt.unconditional, c) for c in prompt.continuations]
        sums = [sum(logp) for logp in given]
        assert row.scores["sum"] == pytest.approx(sums, abs=1e-4)
        lengths = [len(c.strip().encode()) for c in prompt.continuations]
        assert row.scores["bytes"] == pytest.approx(
            [s / n for s, n in zip(sums, lengths, strict=True)], abs=1e-4
        )
        less = [s - sum(a) for s, a in zip(sums, alone, strict=True)]
        assert row.scores["calibrated"] == pytest.approx(less, abs=1e-4)
        scored = zip(prompt.continuations, given, strict=True)
        first = {theirs.ids(prompt.prompt, c)[1][0]: logp[0] for c, logp in scored}
        assert row.option_probability_mass == pytest.approx(sum(map(math.exp, first.values())), rel=1e-3)
        assert row.prediction == sums.index(max(sums))
        assert row.correct == (row.prediction == row.gold)


@pytest.mark.parametrize("template", ["letters", "texts"])
def test_scores_behind_solved_examples_are_those_of_one_pair_a_row_in_transformers(
    tiny: Path, theirs: Reference, tmp_path: Path, template: str
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
    asked = exam(open_task(str(path), template=template), shots=2)
    for row, prompt in zip(answered(tiny, asked, tmp_path), prompts(asked, tiny), strict=True):
        assert not row.truncated
        given = [sum(theirs.score(prompt.prompt, c)) for c in prompt.continuations]
        alone = [sum(theirs.score(prompt.unconditional, c)) for c in prompt.continuations]
        assert row.scores["sum"] == pytest.approx(given, abs=1e-4)
        less = [s - a for s, a in zip(given, alone, strict=True)]
        assert row.scores["calibrated"] == pytest.approx(less, abs=1e-4)


def test_the_rule_is_laid_over_the_rows_and_moves_no_score(
    tiny: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = open_task(str(task_file), template="texts")
    by_sum = answered(tiny, exam(task), tmp_path)
    monkeypatch.delattr(TorchEngine, "load")
    calibrated = answered(tiny, exam(task, rule="calibrated"), tmp_path)  # not computed again
    assert [row.scores for row in by_sum] == [row.scores for row in calibrated]
    assert [row.prediction for row in calibrated] == [row.by("calibrated") for row in by_sum]


def test_by_next_token_what_names_no_option_is_wrong(
    tiny: Path, theirs: Reference, task_file: Path, tmp_path: Path
) -> None:
    asked = exam(open_task(str(task_file), template="letters"), mode="next-token")
    rows = answered(tiny, asked, tmp_path)
    for row, prompt in zip(rows, prompts(asked, tiny), strict=True):
        logp = theirs.next_token(prompt.prompt)
        token = theirs.tokenizer.decode([int(logp.argmax())])
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
def test_prompt_and_continuation_meet_as_in_lm_eval(
    tiny: Path, theirs: Reference, prompt: str, continuation: str
) -> None:
    tokenizer = load_tokenizer(tiny)
    found = encode(tokenizer, prompt, [continuation], 256)
    given, behind = theirs.ids(prompt, continuation)
    # lm-eval's HFLM puts its prefix token before a text that nothing precedes: BOS, else EOS.
    assert found.prefix == (given or [theirs.tokenizer.bos_token_id])
    assert found.continuations == [behind]


def test_a_prompt_that_does_not_fit_loses_its_beginning(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    prompt = "trial " * 300 + "Answer:"
    found = encode(tokenizer, prompt, [" aspirin", " an antibiotic"], 256)
    longest = max(map(len, found.continuations))
    assert found.truncated
    assert found.prefix == tokenizer.encode(prompt)[-(256 - longest) :]
    assert not encode(tokenizer, "Answer:", [" A"], 256).truncated


def test_a_continuation_without_tokens_is_refused(tiny: Path) -> None:
    with pytest.raises(MeditronError, match="0 tokens"):
        encode(load_tokenizer(tiny), "Answer:", [""], 256)


def test_shots_are_drawn_by_the_seed_and_never_the_question_itself(tiny: Path, task_file: Path) -> None:
    task = open_task(str(task_file), template="letters")
    asked = exam(task, shots=3)
    assert asked.drawn == exam(task, shots=3).drawn
    assert len(asked.drawn) == 4
    texts = {question.id: question.text for question in task.rows("train")}
    for question, prompt in zip(asked.questions, prompts(asked, tiny), strict=True):
        shown = [shot.id for shot in asked.drawn if shot.id != question.id][:3]
        assert all(texts[id_] in prompt.prompt for id_ in shown)
        assert prompt.prompt.count("Answer:") == 4
        assert prompt.prompt.count(question.text) == 1 + sum(question.text in texts[i] for i in shown)
    with pytest.raises(UsageError, match="too few for 30 shots"):
        exam(task, shots=30)


def test_bfloat16_is_near_float32(tiny: Path, task_file: Path, tmp_path: Path) -> None:
    asked = exam(open_task(str(task_file), template="letters"))
    wide, narrow = (answered(tiny, asked, tmp_path, dtype) for dtype in ("float32", "bfloat16"))
    for a, b in zip(wide, narrow, strict=True):
        assert a.scores["sum"] == pytest.approx(b.scores["sum"], abs=0.3)
