"""One model over a task's questions: prompts in, one row a question out.

Prompt and continuation meet in tokens as in lm-eval: both are encoded together and the prompt alone, and the
continuation is what is left of the whole behind the prompt's length; blanks at the prompt's end belong to the
continuation. So figures compare with everyone else's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meditron.core.errors import MeditronError
from meditron.engine.base import ScoringRequest
from meditron.engine.torch_engine import TorchEngine
from meditron.evaluate.eval_set import Asked, EvalSet
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import QuestionRow, RowsFile, run_resumable
from meditron.evaluate.scoring import not_a_number
from meditron.store.manifest import fingerprint
from meditron.store.results import Rule
from meditron.tasks.task import prompts_sha256, questions_sha256
from meditron.text.chat import Message
from meditron.text.finetune_templates import question_ids
from meditron.text.tokenizer import Tokenizer

__all__ = ["Encoded", "answer", "encode", "encode_turns"]

_TOGETHER = 64  # questions answered between two writes
_PACKING = 2  # raised when their tokens stand otherwise in rows: in bfloat16 the order of sums moves scores


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt and its continuations as token ids."""

    prefix: list[int]
    continuations: list[list[int]]
    truncated: bool
    """Whether the prompt's beginning was left out, so that the longest continuation fits in the context."""

    def pairs(self) -> list[ScoringRequest]:
        """The prefix with each continuation."""
        return [(self.prefix, continuation) for continuation in self.continuations]


def encode(tokenizer: Tokenizer, prompt: str, continuations: Sequence[str], context: int) -> Encoded:
    """Token ids of a prompt and its continuations, for a context of so many tokens.

    Raises:
        MeditronError: a continuation has no tokens of its own, or does not fit in the context.
    """
    given = prompt.rstrip()
    blanks = prompt[len(given) :]
    prefix = tokenizer.encode(given) or [_beginning(tokenizer)]
    length = len(tokenizer.encode(given))
    behind = [tokenizer.encode(given + blanks + continuation)[length:] for continuation in continuations]
    return _fitted(prefix, behind, continuations, context)


def encode_turns(
    tokenizer: Tokenizer, messages: Sequence[Message], continuations: Sequence[str], context: int
) -> Encoded:
    """Token ids of a prompt in chat turns, and of its continuations, as finetuning has them.

    Raises:
        MeditronError: as `encode`.
    """
    ids = question_ids(tokenizer, messages, continuations)
    return _fitted(list(ids.prompt), list(map(list, ids.answers)), continuations, context)


def _fitted(
    prefix: list[int], behind: list[list[int]], continuations: Sequence[str], context: int
) -> Encoded:
    for text, ids in zip(continuations, behind, strict=True):
        if not 0 < len(ids) < context:
            raise MeditronError(f"'{text}' behind the prompt is {len(ids)} tokens; the context is {context}")
    room = context - max(map(len, behind))
    return Encoded(prefix[-room:], behind, len(prefix) > room)


def _beginning(tokenizer: Tokenizer) -> int:
    """What stands before the first token of a text: BOS, else what ended the text before."""
    return tokenizer.end_of_text_id if tokenizer.bos_id is None else tokenizer.bos_id


def answer(model: EvalModel, exam: EvalSet, file: RowsFile[QuestionRow]) -> list[QuestionRow]:
    """The rows of one model, in the questions' order; those that `file` holds are taken from there.

    Raises:
        MeditronError: a figure is not a number.
    """
    every = exam.prompts(model)
    cache_key = _cache_key(model, exam, every)
    # Like lengths together, and the longest first: what does not fit in memory fails at once.
    ordered = sorted(every, key=lambda asked: (-len(asked.rendered.prompt), asked.question.id))
    groups = [ordered[start : start + _TOGETHER] for start in range(0, len(ordered), _TOGETHER)]

    def work(group: Sequence[Asked]) -> list[QuestionRow]:
        encoded = [_encode(model, asked) for asked in group]
        answered = _by_options if exam.mode == "options" else _by_next_token
        return [
            _row(model, exam, asked, e.truncated, cache_key, found)
            for asked, e, found in zip(group, encoded, answered(model, group, encoded), strict=True)
        ]

    about = f" on {exam.label}"
    rows = run_resumable(file, model.name, cache_key, groups, Asked.item, work, unit="questions", about=about)
    return [_chosen(rows[asked.item()], exam.rule) for asked in every]


def _cache_key(model: EvalModel, exam: EvalSet, every: Sequence[Asked]) -> str:
    """SHA-256 of all that decides a model's rows but the rule, which is laid over them at the end."""
    return fingerprint(
        {
            **model.identity,
            "task": [exam.task.name, exam.task.version, exam.template],
            "data": exam.data_sha256,
            "split": exam.split_sha256,
            "prompts": prompts_sha256(asked.rendered for asked in every),
            "form": exam.prompt_form(model),
            "method": exam.method,
            "batches": [_TOGETHER, _PACKING],
        }
    )


def _encode(model: EvalModel, asked: Asked, *, alone: bool = False) -> Encoded:
    """Token ids of a question, or of its prompt without the question."""
    engine, rendered = model.engine, asked.rendered
    text, turns = (rendered.unconditional, asked.alone) if alone else (rendered.prompt, asked.messages)
    try:
        if turns:
            return encode_turns(model.chat_tokenizer, turns, rendered.continuations, engine.context)
        return encode(engine.tokenizer, text, rendered.continuations, engine.context)
    except MeditronError as error:
        raise MeditronError(f"{model.name}, question {asked.question.id}: {error.message}") from error


@dataclass(frozen=True, slots=True)
class _Found:
    """What the model says of one question."""

    scores: dict[Rule, tuple[float, ...]]
    option_probability_mass: float
    token: str | None = None
    prediction: int | None = None


def _by_options(model: EvalModel, group: Sequence[Asked], encoded: Sequence[Encoded]) -> list[_Found]:
    """Every option's log-probability, and what it is without the question."""
    alone = [_encode(model, asked, alone=True) for asked in group]
    given, free = (_scored(model.engine, side) for side in (encoded, alone))
    return [_weighed(*each) for each in zip(group, encoded, given, free, strict=True)]


Scores = Sequence[npt.NDArray[np.float32]]


def _scored(engine: TorchEngine, encoded: Sequence[Encoded]) -> list[Scores]:
    """Each prompt's continuations; in one call, so that the engine reads once what the prompts begin with."""
    scores = iter(engine.score([pair for e in encoded for pair in e.pairs()]))
    return [[next(scores) for _ in e.continuations] for e in encoded]


def _weighed(asked: Asked, encoded: Encoded, given: Scores, free: Scores) -> _Found:
    sums = [float(logp.sum(dtype=np.float64)) for logp in given]
    calibrated = [total - float(logp.sum(dtype=np.float64)) for total, logp in zip(sums, free, strict=True)]
    lengths = [max(1, len(text.strip().encode())) for text in asked.rendered.continuations]
    first = {ids[0]: float(logp[0]) for ids, logp in zip(encoded.continuations, given, strict=True)}
    scores: dict[Rule, tuple[float, ...]] = {
        "sum": tuple(sums),
        "bytes": tuple(total / length for total, length in zip(sums, lengths, strict=True)),
        "calibrated": tuple(calibrated),
    }
    return _Found(scores, math.fsum(map(math.exp, first.values())))


def _by_next_token(model: EvalModel, group: Sequence[Asked], encoded: Sequence[Encoded]) -> list[_Found]:
    """The likeliest token of the whole vocabulary, and which option it names, if it names one."""
    tokenizer = model.engine.tokenizer
    found = []
    for e, logp_V in zip(encoded, model.engine.next_token([e.prefix for e in encoded]), strict=True):
        first = [continuation[0] for continuation in e.continuations]
        mass = math.fsum(math.exp(logp_V[token]) for token in set(first))
        likeliest = int(logp_V.argmax())
        named = _named(tokenizer, likeliest, first)
        found.append(_Found({}, mass, tokenizer.decode([likeliest]), named))
    return found


def _named(tokenizer: Tokenizer, token: int, first: Sequence[int]) -> int | None:
    """The one option that begins with this token, blanks aside: ` A` and `A` are a letter, `a` is none."""
    word = tokenizer.decode([token]).strip()
    named = [
        option for option, other in enumerate(first) if word and tokenizer.decode([other]).strip() == word
    ]
    return named[0] if len(named) == 1 else None


def _row(
    model: EvalModel, exam: EvalSet, asked: Asked, truncated: bool, cache_key: str, found: _Found
) -> QuestionRow:
    question = asked.question
    figures = [found.option_probability_mass, *(f for scores in found.scores.values() for f in scores)]
    wrong = next((figure for figure in figures if not math.isfinite(figure)), None)
    if wrong is not None:
        raise not_a_number(model.name, f"a score on {question.id}", wrong)
    row = QuestionRow(
        **model.row(cache_key),
        task=exam.task.name,
        version=exam.task.version,
        data_sha256=exam.split_sha256,
        template=exam.template,
        prompt_form=exam.prompt_form(model),
        method=exam.method,
        shots=len(asked.shot_ids),
        shot_ids=asked.shot_ids,
        id=question.id,
        question_sha256=questions_sha256([question]),
        prompt_sha256=prompts_sha256([asked.rendered]),
        gold=question.gold,
        rule=None,
        prediction=found.prediction,
        correct=found.prediction == question.gold,
        scores=found.scores,
        option_probability_mass=found.option_probability_mass,
        token=found.token,
        truncated=truncated,
    )
    return _chosen(row, exam.rule)  # a file that a kill left holds answers, not blanks that count as wrong


def _chosen(row: QuestionRow, rule: Rule) -> QuestionRow:
    """The row with the answer that this rule takes from its scores."""
    if not row.scores:
        return row
    prediction = row.by(rule)
    return row.model_copy(update={"rule": rule, "prediction": prediction, "correct": prediction == row.gold})
