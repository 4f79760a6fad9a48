"""The page on which the questions of a task are browsed with the answers of every model.

Filters (wrong or unparsed answers, one model, one subject) are radio buttons and style rules: the page has no
script, like every page, and shows all questions in a browser that does not know the rules.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from meditron.report import number_format
from meditron.report.pages import Filter, Page, QuestionItem, QuestionOption

__all__ = ["MOST_QUESTIONS", "BrowsedQuestion", "ShownAnswer", "write_questions_page"]

MOST_QUESTIONS = 5_000
"""Largest number of questions on a page; the first ones in the order of the evaluation are shown."""
_OUTCOMES = ("right", "wrong", "unparsed")
_NO_SUBJECT = "no subject"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAnswer:
    """The answer of one model to a question."""

    prediction: int | None
    """Index of the chosen option; None if the answer names no option."""
    confidence: float | None = None
    """Probability that the model gives to its answer; None for methods without probabilities."""
    outputs: tuple[str, ...] = ()
    """The generated texts; empty for methods that generate none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowsedQuestion:
    """A question with the answers of every model."""

    id: str
    text: str
    context: str
    options: tuple[str, ...]
    gold: int
    subject: str
    """Subject or category; empty if the question has none."""
    answers: Mapping[str, ShownAnswer]
    """Model → its answer."""

    def outcome(self, model: str) -> str:
        """Return `right`, `wrong` or `unparsed`. An unparsed answer counts as wrong in the accuracy."""
        prediction = self.answers[model].prediction
        if prediction is None:
            return "unparsed"
        return "right" if prediction == self.gold else "wrong"


def write_questions_page(path: Path, task: str, questions: Sequence[BrowsedQuestion]) -> None:
    """Write the page of a task.

    Args:
        path: The page.
        task: Name of the task.
        questions: The questions; all with answers of the same models.
    """
    shown = questions[:MOST_QUESTIONS]
    models = list(shown[0].answers)
    page = Page(f"Questions of {task}", "Every question with its options and the models' answers")
    page.text(
        "The right option is bold. An answer that names no option is unparsed; it counts as wrong in the "
        "accuracy."
    )
    if len(shown) < len(questions):
        counts = [number_format.count(len(each)) for each in (shown, questions)]
        page.text(f"The first {counts[0]} of {counts[1]} questions are shown; the rows file has all answers.")
    subjects = sorted({question.subject or _NO_SUBJECT for question in shown})
    subject_classes = {subject: f"subject-{place}" for place, subject in enumerate(subjects)}
    page.questions(
        list(_filters(shown, models, subject_classes)),
        [_item(question, models, subject_classes) for question in shown],
    )
    page.write(path)


def _filters(
    questions: Sequence[BrowsedQuestion], models: Sequence[str], subject_classes: Mapping[str, str]
) -> Iterator[Filter]:
    """Yield the groups of filters: the outcome of each model, and the subject if there are several."""
    for place, model in enumerate(models):
        counts = [sum(question.outcome(model) == outcome for question in questions) for outcome in _OUTCOMES]
        options = {
            f"{outcome} ({number_format.count(count)})": f"model-{place}-{outcome}"
            for outcome, count in zip(_OUTCOMES, counts, strict=True)
        }
        yield Filter(name=model, options=options)
    if len(subject_classes) > 1:
        sizes = [sum((q.subject or _NO_SUBJECT) == subject for q in questions) for subject in subject_classes]
        yield Filter(
            name="subject",
            options={
                f"{subject} ({number_format.count(size)})": subject_classes[subject]
                for subject, size in zip(subject_classes, sizes, strict=True)
            },
        )


def _item(
    question: BrowsedQuestion, models: Sequence[str], subject_classes: Mapping[str, str]
) -> QuestionItem:
    chosen: dict[int | None, list[str]] = {}
    for model in models:
        answer = question.answers[model]
        share = "" if answer.confidence is None else f" {number_format.percent(answer.confidence)}"
        chosen.setdefault(answer.prediction, []).append(f"{model}{share}")
    outputs = {
        f"{model}, sample {number}" if len(answer.outputs) > 1 else model: text
        for model, answer in question.answers.items()
        for number, text in enumerate(answer.outputs, start=1)
    }
    return QuestionItem(
        heading=" · ".join(filter(None, (question.id, question.subject))),
        context=question.context,
        text=question.text,
        options=[
            QuestionOption(
                letter=letter,
                text=text,
                gold=index == question.gold,
                chosen_by=", ".join(chosen.get(index, ())),
            )
            for index, (letter, text) in enumerate(zip(ascii_uppercase, question.options, strict=False))
        ],
        unparsed=", ".join(chosen.get(None, ())),
        outputs=outputs,
        classes=[
            *(f"model-{place}-{question.outcome(model)}" for place, model in enumerate(models)),
            subject_classes[question.subject or _NO_SUBJECT],
        ],
    )
