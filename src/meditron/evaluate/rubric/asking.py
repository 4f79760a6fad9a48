"""Asking of models for answers and of judges for verdicts, resumable row by row.

A local engine answers prompts in fixed groups, because a batch's size changes the last bits; the rows of a
group are written together. A server answers prompts independently: each row is written when its answer
arrives, and only missing ones are requested again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from meditron.core.console import progress
from meditron.core.errors import UsageError
from meditron.engine.base import GivesLogits, Prompt, ScoresTokens, prompt_ids
from meditron.evaluate.methods.generated import sample_seed
from meditron.evaluate.model import RAW, ApiModel, EvalModel, LocalModel
from meditron.evaluate.rows import EvalRow
from meditron.evaluate.rows_file import RowsFile
from meditron.evaluate.rubric.judge_prompt import JudgePrompt, parse_verdict, plain_conversation
from meditron.evaluate.rubric.rows import AnswerRow, JudgementRow, text_sha256
from meditron.store.manifest import fingerprint
from meditron.store.rubric_results import JudgeRecord
from meditron.tasks.rubrics import Criterion, RubricRow, RubricSet
from meditron.text.chat import Message

__all__ = ["AnswerSettings", "Judge", "answer_conversations", "is_own_judge", "judge_answers"]

_GROUP = 16
"""Prompts of a group of a local engine; a killed run loses at most one group."""
_REMOTE_GROUP = 1024
"""Prompts that are in memory at a time for a server: those of HealthBench together take 400 MB."""
_RETRY_TEMPERATURE = 0.7
"""Lowest temperature of a repeated request: a greedy judge would give the same text again."""
_TOKENIZER = "tokenizer"
_NEXT_TURN = "\n\nUser:"
R = TypeVar("R", AnswerRow, JudgementRow)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Settings of the answers to conversations, equal for all models."""

    max_tokens: int
    temperature: float
    seed: int
    plain: bool = False
    """Prompt every model in plain text."""


@dataclass(frozen=True)
class Judge:
    """A model that judges, its prompt and its sampling settings."""

    model: EvalModel
    prompt: JudgePrompt
    max_tokens: int
    temperature: float
    attempts: int
    seed: int

    @property
    def answering(self) -> EvalModel:
        """The model in the engine that generates text."""
        return self.model.answering(generates=True)

    @property
    def form(self) -> str:
        """Form of its prompts."""
        return _conversation_form(self.answering)

    def record(self) -> JudgeRecord:
        """Return the judge's identity and settings, for results."""
        model = self.answering
        return JudgeRecord(
            name=model.name,
            digest=model.digest,
            engine=model.engine_label,
            dtype=model.dtype,
            identity=dict(model.provenance),
            form=self.form,
            prompt=self.prompt.id,
            prompt_sha256=self.prompt.sha256,
            temperature=self.temperature,
            retry_temperature=max(self.temperature, _RETRY_TEMPERATURE),
            max_tokens=self.max_tokens,
            attempts=self.attempts,
            seed=self.seed,
        )


def answer_conversations(
    model: EvalModel, rubrics: RubricSet, settings: AnswerSettings, file: RowsFile[AnswerRow]
) -> list[AnswerRow]:
    """Let a model answer every conversation; rows of the file with the same cache key are reused.

    Returns:
        The rows in the order of the rubrics.

    Raises:
        UsageError: a conversation does not fit in the model's context.
    """
    model = model.answering(generates=True)
    form = _conversation_form(model, plain=settings.plain)
    prompts = {row.id: _to_prompt(row.messages, form) for row in rubrics.rows}
    cache_key = _answers_key(model, rubrics, settings, form)

    def answer(group: Sequence[RubricRow]) -> Iterator[AnswerRow]:
        for row in group:
            _require_fitting(model, row.id, prompts[row.id], form)
        texts = model.generator.generate_each(
            [prompts[row.id] for row in group],
            [sample_seed(settings.seed, row.id, 0) for row in group],
            raw=form == RAW,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            nonempty=True,
        )
        for index, generation in texts:
            text = _answer_text(generation.text, form).strip()
            yield AnswerRow(
                **model.row_fields(cache_key),
                id=group[index].id,
                rubrics=rubrics.name,
                rubrics_sha256=rubrics.file_sha256,
                prompt_form=form,
                messages_sha256=group[index].messages_sha256,
                prompt_sha256=text_sha256(_prompt_text(prompts[group[index].id])),
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                seed=settings.seed,
                answer=text,
                answer_sha256=text_sha256(text),
                unfinished=generation.stop in ("length", "context"),
            )

    rows = _resume(
        file,
        model,
        model.name,
        cache_key,
        rubrics.rows,
        key=lambda row: (row.id, row.messages_sha256),
        work=answer,
        label=f"evaluate {model.name} on {rubrics.name}",
        unit="answers",
    )
    return [rows[row.id, row.messages_sha256] for row in rubrics.rows]


def _answers_key(model: EvalModel, rubrics: RubricSet, settings: AnswerSettings, form: str) -> str:
    """Return the cache key of the answers: all that an answer depends on besides its own conversation."""
    drawn = {"seed": settings.seed} if settings.temperature > 0 else {}
    return fingerprint(
        {
            **model.cache_identity,
            **drawn,
            "rubrics": [rubrics.name, rubrics.file_sha256],
            # The groups of a local engine depend on the other rows.
            **({} if isinstance(model, ApiModel) else {"rows": rubrics.rows_sha256}),
            "form": form,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "group": _GROUP,
        }
    )


@dataclass(frozen=True)
class _Case:
    """One criterion of one answer. Its prompt is rendered when it is needed, because all take much memory."""

    row: RubricRow
    answer: AnswerRow
    criterion: Criterion
    key: tuple[str, str]
    """The row's id and the hash of the judge's prompt."""

    @classmethod
    def of(cls, row: RubricRow, answer: AnswerRow, criterion: Criterion, prompt: JudgePrompt) -> Self:
        return cls(row, answer, criterion, (row.id, text_sha256(_judge_text(row, answer, criterion, prompt))))

    def text(self, prompt: JudgePrompt) -> str:
        return _judge_text(self.row, self.answer, self.criterion, prompt)


def _judge_text(row: RubricRow, answer: AnswerRow, criterion: Criterion, prompt: JudgePrompt) -> str:
    return prompt.render(row.messages, answer.answer, criterion)


def judge_answers(
    judge: Judge, rubrics: RubricSet, answers: Sequence[AnswerRow], file: RowsFile[JudgementRow]
) -> list[list[JudgementRow]]:
    """Let a judge decide every criterion of every answer of one model.

    A text without a verdict is requested again, up to `attempts` times in all; after that the verdict is
    missing. Rows of the file with the same cache key are reused.

    Returns:
        For each answer, a row for each criterion, in the order of the rubrics.
    """
    cases = [
        [_Case.of(row, answer, criterion, judge.prompt) for criterion in row.criteria]
        for row, answer in zip(rubrics.rows, answers, strict=True)
    ]
    # A criterion that a rubric lists twice is judged once.
    distinct = list({case.key: case for group in cases for case in group}.values())
    cache_key = _judgement_cache_key(judge, rubrics, answers[0], [case.key for case in distinct])
    rows = _resume(
        file,
        judge.answering,
        answers[0].model,
        cache_key,
        distinct,
        key=lambda case: case.key,
        work=lambda group: _judge_group(judge, rubrics, group, cache_key),
        label=f"{judge.model.name} judges {answers[0].model} on {rubrics.name}",
        unit="judgements",
    )
    return [[rows[case.key] for case in group] for group in cases]


def _judgement_cache_key(
    judge: Judge, rubrics: RubricSet, answer: AnswerRow, keys: Sequence[tuple[str, str]]
) -> str:
    return fingerprint(
        {
            "answers": [answer.model_digest, answer.cache_key],
            "rubrics": [rubrics.name, rubrics.file_sha256],
            # Each row has the hash of its own prompt; the other prompts decide a local engine's groups.
            **({} if isinstance(judge.model, ApiModel) else {"prompts": [list(key) for key in keys]}),
            **judge.answering.cache_identity,
            "form": judge.form,
            "prompt": judge.prompt.sha256,
            "temperature": judge.temperature,
            "max_tokens": judge.max_tokens,
            "attempts": [judge.attempts, _RETRY_TEMPERATURE],
            "seed": judge.seed,
            "group": _GROUP,
        }
    )


def _judge_group(
    judge: Judge, rubrics: RubricSet, group: Sequence[_Case], cache_key: str
) -> Iterator[JudgementRow]:
    """Yield the row of each case as soon as it has a verdict or no attempt is left."""
    model, form = judge.answering, judge.form
    prompts = [_to_prompt([{"role": "user", "content": case.text(judge.prompt)}], form) for case in group]
    outputs: list[list[str]] = [[] for _ in group]
    pending = []
    for index, prompt in enumerate(prompts):
        if _excess_tokens(model, prompt, form, judge.max_tokens) is None:
            pending.append(index)
        else:
            yield _judgement_row(judge, rubrics, group[index], (), cache_key)
    for attempt in range(judge.attempts):
        texts = model.generator.generate_each(
            [prompts[index] for index in pending],
            [sample_seed(judge.seed, ":".join(group[index].key), attempt) for index in pending],
            raw=form == RAW,
            max_tokens=judge.max_tokens,
            temperature=max(judge.temperature, _RETRY_TEMPERATURE) if attempt else judge.temperature,
            nonempty=True,
        )
        unread = []
        for place, generation in texts:
            index, text = pending[place], _answer_text(generation.text, form)
            outputs[index].append(text)
            if parse_verdict(text, judge.prompt.answer) is None and attempt + 1 < judge.attempts:
                unread.append(index)
            else:
                yield _judgement_row(judge, rubrics, group[index], tuple(outputs[index]), cache_key)
        pending = sorted(unread)


def _judgement_row(
    judge: Judge, rubrics: RubricSet, case: _Case, outputs: tuple[str, ...], cache_key: str
) -> JudgementRow:
    answer, model = case.answer, judge.answering
    return JudgementRow(
        model=answer.model,
        model_digest=answer.model_digest,
        engine=answer.engine,
        dtype=answer.dtype,
        cache_key=cache_key,
        id=case.row.id,
        rubrics=rubrics.name,
        rubrics_sha256=rubrics.file_sha256,
        answer_sha256=answer.answer_sha256,
        criterion=case.criterion.text,
        points=case.criterion.points,
        judge=model.name,
        judge_digest=model.digest,
        judge_engine=model.engine_label,
        judge_dtype=model.dtype,
        judge_form=judge.form,
        judge_prompt=judge.prompt.id,
        judge_prompt_sha256=judge.prompt.sha256,
        prompt_sha256=case.key[1],
        temperature=judge.temperature,
        max_tokens=judge.max_tokens,
        attempts=judge.attempts,
        seed=judge.seed,
        outputs=outputs,
        met=parse_verdict(outputs[-1], judge.prompt.answer) if outputs else None,
    )


def _resume(
    file: RowsFile[R],
    model: EvalModel,
    name: str,
    cache_key: str,
    items: Sequence[T],
    *,
    key: Callable[[T], tuple[str, ...]],
    work: Callable[[Sequence[T]], Iterable[R]],
    label: str,
    unit: str,
) -> dict[tuple[str, ...], R]:
    """Compute the rows that the file does not contain yet; returns key → row, for all items."""
    rows = {
        each: row.model_copy(update={"model": name})
        for each, row in file.rows_with_cache_key(cache_key).items()
    }
    remote = isinstance(model, ApiModel)
    if remote:
        missing = [item for item in items if key(item) not in rows]
        groups = [missing[start : start + _REMOTE_GROUP] for start in range(0, len(missing), _REMOTE_GROUP)]
    else:
        parts = [list(items[start : start + _GROUP]) for start in range(0, len(items), _GROUP)]
        groups = [part for part in parts if any(key(item) not in rows for item in part)]
    if not groups:
        return rows
    start = len(items) - sum(map(len, groups))
    with progress(label, len(items), unit, start=start) as bar:
        for group in groups:
            batches: Iterable[list[R]] = ([row] for row in work(group)) if remote else [list(work(group))]
            for batch in batches:
                file.append_rows(batch)
                rows |= {row.item_key(): row for row in batch}
                bar.advance(len(batch))
    return rows


def _conversation_form(model: EvalModel, *, plain: bool = False) -> str:
    """Return the form of a model's conversations: a chat template if it has one, else plain text.

    Unlike questions, conversations are in the chat template of a downloaded model, too: a model that was made
    to converse is prompted as it was made.
    """
    if plain:
        return RAW
    if model.trained_prompt_form != RAW:
        return model.trained_prompt_form
    if isinstance(model, LocalModel) and model.tokenizer.chat_template is not None:
        return _TOKENIZER
    return RAW


def _answer_text(text: str, form: str) -> str:
    """Return a generated text, in plain text only up to the next turn, which such a model tends to add."""
    return text.partition(_NEXT_TURN)[0] if form == RAW else text


def _to_prompt(messages: Sequence[Message], form: str) -> Prompt:
    return f"{plain_conversation(messages)}\n\nAssistant:" if form == RAW else list(messages)


def _prompt_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else plain_conversation(prompt)


def _require_fitting(model: EvalModel, name: str, prompt: Prompt, form: str) -> None:
    """Raise UsageError if the prompt of the conversation `name` leaves no space for an answer."""
    if (tokens := _excess_tokens(model, prompt, form, 1)) is not None:
        raise UsageError(
            f"{model.name}: the conversation {name} has {tokens} tokens, more than its context of "
            f"{model.generator.context}"
        )


def _excess_tokens(model: EvalModel, prompt: Prompt, form: str, answer_tokens: int) -> int | None:
    """Return a prompt's number of tokens if it leaves no space for an answer; None if it does.

    A server's prompts are not counted, because it has the tokenizer.
    """
    engine: Any = model.generator
    if not isinstance(engine, ScoresTokens | GivesLogits):
        return None
    tokens = len(prompt_ids(engine.tokenizer, prompt, raw=form == RAW))
    return tokens if tokens + answer_tokens > engine.context else None


def is_own_judge(judge: Judge, row: EvalRow) -> bool:
    """Return True if a judge judges its own answers."""
    return judge.answering.digest == row.model_digest
