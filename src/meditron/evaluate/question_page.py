"""The page of a task's questions, from the questions and the rows of their answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.methods.generated import GeneratedRow
from meditron.evaluate.rows import ImportedRow, QuestionRow
from meditron.report.questions_page import BrowsedQuestion, ShownAnswer, write_questions_page
from meditron.tasks.question import Question

__all__ = ["question_page_name", "write_question_page", "write_task_page"]


def question_page_name(rows_file: str) -> str:
    """Return the name of the page of a rows file: `questions-drugs.html` for `drugs.jsonl`."""
    return f"questions-{rows_file.removesuffix('.jsonl')}.html"


def write_task_page(
    folder: Path, eval_sets: Sequence[EvalSet], answers: Mapping[str, Mapping[str, Sequence[QuestionRow]]]
) -> str:
    """Write the page of an evaluated task's questions, and return its name.

    Args:
        folder: The folder of the rows file.
        eval_sets: The evaluation sets of the task, one for each method and prompt form.
        answers: Label of an evaluation set → model → its rows.
    """
    first = eval_sets[0]
    names = {
        # `TASK (raw)` or `TASK (METHOD)`: the models of all evaluation sets are on one page.
        f"{model}{eval_set.label.removeprefix(first.label)}": rows
        for eval_set in eval_sets
        for model, rows in answers[eval_set.label].items()
    }
    return write_question_page(folder, first.rows_file, first.label, first.questions, names)


def write_question_page(
    folder: Path,
    rows_file: str,
    task: str,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[QuestionRow]],
) -> str:
    """Write the page of a task's questions.

    Args:
        folder: The folder of the rows file.
        rows_file: Name of the rows file.
        task: Name of the task.
        questions: The questions, in the order of the page; of several with one id the first is shown.
        answers: Name of a model → its rows; all models have answered the same questions.

    Returns:
        The name of the page.
    """
    by_id = {name: {row.id: row for row in reversed(rows)} for name, rows in answers.items()}
    answered = next(iter(by_id.values()))
    distinct = {question.id: question for question in reversed(questions) if question.id in answered}
    browsed = [
        BrowsedQuestion(
            id=question.id,
            text=question.text,
            context=question.context,
            options=question.options,
            gold=question.gold,
            subject=question.group or "",
            answers={name: _shown_answer(rows[question.id]) for name, rows in by_id.items()},
        )
        for question in reversed(distinct.values())
    ]
    page = question_page_name(rows_file)
    write_questions_page(folder / page, task, browsed)
    return page


def _shown_answer(row: QuestionRow) -> ShownAnswer:
    outputs = row.outputs if isinstance(row, GeneratedRow | ImportedRow) else ()
    return ShownAnswer(prediction=row.prediction, confidence=row.confidence, outputs=outputs)
