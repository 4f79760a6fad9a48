"""One model over the questions of an evaluation set: prompts in, one row per question out."""

from collections.abc import Sequence
from typing import Any

from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import EvalModel
from meditron.evaluate.prompts import EvalPrompt
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import RowsFile, run_resumable
from meditron.store.manifest import fingerprint
from meditron.tasks.task import prompts_sha256, questions_sha256

__all__ = ["answer_questions"]


def answer_questions(model: EvalModel, eval_set: EvalSet, file: RowsFile[QuestionRow]) -> list[QuestionRow]:
    """Answer every question with one model.

    Args:
        model: The model.
        eval_set: The questions and the method.
        file: The task's rows file. Its rows of the same settings are reused, new ones are appended.

    Returns:
        The rows in the questions' order.

    Raises:
        UsageError: the model's engine lacks the method's capability.
        MeditronError: a figure is not a finite number.
    """
    method = eval_set.method
    # All prompts before any answer: their hash is part of the cache key.
    prompts = eval_set.prompts(model)
    cache_key = _cache_key(model, eval_set, prompts)
    # Prompts of similar length form a batch, the longest first: running out of memory shows at once.
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt.rendered.prompt), prompt.question.id))
    size = method.group_size
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def work(group: Sequence[EvalPrompt]) -> list[QuestionRow]:
        fields = [_common_fields(model, eval_set, prompt, cache_key) for prompt in group]
        return list(method.answer(model, group, fields))

    rows = run_resumable(
        file,
        model.name,
        cache_key,
        groups,
        EvalPrompt.item,
        work,
        unit="questions",
        about=f" on {eval_set.label}",
    )
    # Rows of an earlier run may have been chosen by another rule; no model is needed to choose again.
    return [method.choose(rows[prompt.item()]) for prompt in prompts]


def _cache_key(model: EvalModel, eval_set: EvalSet, prompts: Sequence[EvalPrompt]) -> str:
    """Hash everything that decides what the model is asked and computes."""
    method = eval_set.method
    return fingerprint(
        {
            **model.cache_identity,
            "task": [eval_set.task.name, eval_set.task.version, eval_set.template],
            "data": eval_set.data_sha256,
            # Rows record the whole split: comparison must know if two evaluations had the same file.
            "split": eval_set.split_sha256,
            "prompts": prompts_sha256(prompt.rendered for prompt in prompts),
            # Rows record the hash of the file of examples, which changes with questions that were not drawn.
            **({"shots": eval_set.examples.sha256} if eval_set.examples.sha256 else {}),
            "form": eval_set.prompt_form(model),
            "method": method.name,
            # Last and flat, so that a method can only add to what identifies its rows.
            **method.cache_key(),
        }
    )


def _common_fields(model: EvalModel, eval_set: EvalSet, prompt: EvalPrompt, cache_key: str) -> dict[str, Any]:
    """Return the fields of a row that are the same for every method."""
    question = prompt.question
    return {
        **model.row_fields(cache_key),
        "task": eval_set.task.name,
        "version": eval_set.task.version,
        "data_sha256": eval_set.split_sha256,
        "template": eval_set.template,
        "prompt_form": eval_set.prompt_form(model),
        "method": eval_set.method.name,
        "shots": len(prompt.shot_ids),
        "shot_ids": prompt.shot_ids,
        "shots_sha256": eval_set.examples.sha256,
        "id": question.id,
        "question_sha256": questions_sha256([question]),
        "prompt_sha256": prompts_sha256([prompt.rendered]),
        "gold": question.gold,
    }
