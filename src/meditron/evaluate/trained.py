"""Refusal to score a model on its own training data or on that of a model that it was trained from."""

from collections.abc import Iterable, Mapping, Sequence

from meditron.core.console import warn
from meditron.core.errors import MeditronError
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import EvalModel
from meditron.store.ancestry import Training, training_data_sentence
from meditron.store.corpus import CorpusDocument
from meditron.store.identity import short_hash
from meditron.store.results import TrainingData, TrainingRecord
from meditron.tasks.overlap import is_in_messages, lookup_hashes
from meditron.tasks.question import Question
from meditron.tasks.rubrics import RubricSet

__all__ = [
    "refuse_trained_conversations",
    "refuse_trained_documents",
    "refuse_trained_questions",
    "training_data_record",
]


def refuse_trained_questions(model: EvalModel, eval_sets: Iterable[EvalSet]) -> None:
    """Raise MeditronError if the model, or a model that it was trained from, was trained on a question.

    Questions are compared by content, independent of ids, files, contexts and the order of options.
    """
    if unlisted := [training.stage for training in _recorded_trainings(model) if training.texts is None]:
        warn(
            f"{model.name} was trained on more messages than its record lists ({', '.join(unlisted)}): "
            "they may include the questions"
        )
    for eval_set in eval_sets:
        seen = [
            (training, _trained_questions(training, eval_set.questions))
            for training in _recorded_trainings(model)
        ]
        # A set, because two trainings may have used the same question.
        if trained := {question for _, questions in seen for question in questions}:
            stages = ", ".join(f"{t.stage} (data: {t.data})" for t, questions in seen if questions)
            raise MeditronError(
                f"{model.name} was trained on {len(trained)} of the {len(eval_set.questions)} questions of "
                f"{eval_set.task.name}, in {stages}",
                hint="a score on them would measure memory: evaluate on questions that no training has read",
            )


def _recorded_trainings(model: EvalModel) -> tuple[Training, ...]:
    return model.ancestry.trainings if model.ancestry else ()


def _trained_questions(training: Training, questions: Iterable[Question]) -> list[Question]:
    """Return the questions that a training used: in a task, in a conversation, or in their abstract."""
    known, texts = {*training.questions, *training.variants}, frozenset(training.texts or ())
    documents = frozenset(training.documents or ())
    return [
        q
        for q in questions
        if known & lookup_hashes(q)
        or (q.document_sha256 and short_hash(q.document_sha256) in documents)
        or (texts and is_in_messages(texts, q.text))
    ]


def refuse_trained_conversations(model: EvalModel, sets: Iterable[RubricSet]) -> None:
    """Raise MeditronError if the model, or one it was trained from, was trained on a conversation's question.

    That is its last message. Conversations are compared by content, as questions are.
    """
    for rubrics in sets:
        for training in _recorded_trainings(model):
            texts = frozenset(training.texts or ())
            trained = sum(is_in_messages(texts, row.messages[-1]["content"]) for row in rubrics.rows)
            if trained:
                raise MeditronError(
                    f"{model.name} was trained on {trained} of the {len(rubrics.rows)} conversations of "
                    f"{rubrics.name}, in {training.stage} (data: {training.data})",
                    hint="a score on them would measure memory: evaluate on other conversations",
                )


def refuse_trained_documents(model: EvalModel, documents: Mapping[str, Sequence[CorpusDocument]]) -> None:
    """Raise MeditronError if the model, or one it was trained from, was trained on a held-out document."""
    heldout = {short_hash(text.content_sha256) for texts in documents.values() for text in texts}
    for training in _recorded_trainings(model):
        # For a large corpus only a digest is recorded, so overlap cannot be excluded.
        if training.documents is None:
            warn(
                f"{model.name} was trained on more documents than its record lists ({training.stage}): "
                "they may include held-out documents"
            )
        if overlap := len(heldout.intersection(training.documents or ())):
            raise MeditronError(
                f"{model.name} was trained on {overlap} of the {len(heldout)} held-out documents, in "
                f"{training.stage} (data: {training.data})",
                hint="perplexity on them would measure memory: use a corpus that holds them out as well",
            )


def training_data_record(model: EvalModel) -> TrainingData:
    """Return the record of a model's training data, for results and the model card."""
    ancestry = model.ancestry
    # Most downloaded models have no record: their training data is unknown and may include the questions.
    if ancestry is None:
        return TrainingData(statement=training_data_sentence(None), known=False)
    return TrainingData(
        statement=training_data_sentence(ancestry),
        known=ancestry.trained_from_scratch and ancestry.lists_all_data,
        base=ancestry.base,
        trainings=tuple(
            TrainingRecord(
                stage=training.stage,
                kind=training.kind,
                data=training.data,
                chat_template=training.chat_template,
                questions=len(training.questions),
                documents=None if training.documents is None else len(training.documents),
            )
            for training in ancestry.trainings
        ),
    )
