"""Answering of an evaluation set's questions by one model, with one row per question."""

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
    """Let one model answer every question of an evaluation set.

    Args:
        model: The model.
        eval_set: The questions and the method.
        file: The task's rows file. Rows with the same cache key are reused; new rows are appended.

    Returns:
        The rows in the questions' order.

    Raises:
        UsageError: the model's engine lacks the method's capability.
        MeditronError: a score is infinite or NaN.
    """
    method = eval_set.method
    model = model.answering(generates=method.generates)
    # All prompts are rendered first, because their hash is part of the cache key.
    prompts = eval_set.prompts(model)
    cache_key = _cache_key(model, eval_set, prompts)
    # Sorted by length, so that batches need little padding; the longest first, so that running out of memory
    # shows at once.
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt.rendered.prompt), prompt.question.id))
    size = method.group_size
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def answer_group(group: Sequence[EvalPrompt]) -> list[QuestionRow]:
        fields = [_common_fields(model, eval_set, prompt, cache_key) for prompt in group]
        return list(method.answer_prompts(model, group, fields))

    rows = run_resumable(
        file,
        model.name,
        cache_key,
        groups,
        EvalPrompt.item_key,
        answer_group,
        unit="questions",
        about=f" on {eval_set.label}",
    )
    # A reused row may hold the choice by another rule, which needs the stored scores only, clusters of other
    # questions, and the offset from another first seed. Offset 0 stays: the row is of a result by itself.
    return [
        method.choose_answer(row).model_copy(
            update={
                "cluster": eval_set.clusters.get(row.id, ""),
                "seed_offset": min(row.seed_offset, eval_set.seed_offset),
            }
        )
        for row in (rows[prompt.item_key()] for prompt in prompts)
    ]


def _cache_key(model: EvalModel, eval_set: EvalSet, prompts: Sequence[EvalPrompt]) -> str:
    """Hash everything that the model's answers depend on."""
    method = eval_set.method
    return fingerprint(
        {
            **model.cache_identity,
            "task": [eval_set.task.name, eval_set.task.version, eval_set.template_id],
            "data": eval_set.data_sha256,
            # Rows record the hash of the whole split, so it must not differ between reused rows.
            "split": eval_set.split_sha256,
            "prompts": prompts_sha256(prompt.rendered for prompt in prompts),
            # Rows record the hash of the file of examples, which changes with questions that were not drawn.
            **({"shots": eval_set.examples.file_sha256} if eval_set.examples.file_sha256 else {}),
            "form": eval_set.prompt_form(model),
            "method": method.name,
            **({"system_prompt": eval_set.stored_prompt.id} if eval_set.stored_prompt else {}),
            # The method's own settings, as further keys beside those above.
            **method.cache_key(),
        }
    )


def _common_fields(model: EvalModel, eval_set: EvalSet, prompt: EvalPrompt, cache_key: str) -> dict[str, Any]:
    """Return the fields of a question's row that every method has."""
    question = prompt.question
    return {
        **model.row_fields(cache_key),
        "task": eval_set.task.name,
        "version": eval_set.task.version,
        "data_sha256": eval_set.split_sha256,
        "template": eval_set.template_id,
        "prompt_form": eval_set.prompt_form(model),
        "method": eval_set.method.name,
        "system_prompt": eval_set.stored_prompt.id if eval_set.stored_prompt else None,
        "shots": len(prompt.shot_ids),
        "shot_ids": prompt.shot_ids,
        "shots_sha256": eval_set.examples.file_sha256,
        "id": question.id,
        "question_sha256": questions_sha256([question]),
        "prompt_sha256": prompts_sha256([prompt.rendered]),
        "option_order": question.option_order,
        "seed_offset": eval_set.seed_offset,
        "cluster": eval_set.clusters.get(question.id, ""),
        "gold": question.gold,
    }
