"""Accuracy on the questions that the corpus of a model contained, and on the other questions.

The corpus stage searches the documents for benchmark questions, and training records what it found in the
model's ancestry. The record of any evaluated model splits the scores of all models, so that the same
questions are compared: a base model may answer the questions of one group better as well.
"""

from collections.abc import Iterable, Mapping, Sequence

from meditron.core.console import warn
from meditron.core.statistics import wilson_interval
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import QuestionRow
from meditron.store.contamination import CorpusContamination
from meditron.store.identity import short_hash
from meditron.store.results import ContaminationGroup, SubsetScore

__all__ = ["QuestionGroups", "corpus_records", "group_questions", "score_groups"]

QuestionGroups = Mapping[str, ContaminationGroup]
"""Id of a question → its group."""


def corpus_records(models: Iterable[EvalModel]) -> tuple[CorpusContamination, ...]:
    """Return the different records of the corpora that the models were trained on."""
    trainings = (training for model in models if model.ancestry for training in model.ancestry.trainings)
    records = (training.contamination for training in trainings)
    return tuple(dict.fromkeys(record for record in records if record is not None))


def group_questions(eval_set: EvalSet, records: Sequence[CorpusContamination]) -> QuestionGroups:
    """Return the group of each question of an evaluation set; nothing if no corpus was searched.

    Warns if questions are in training text.
    """
    if not records:
        return {}
    trained = {digest for record in records for digest in record.trained}
    removed = {digest for record in records for digest in record.removed}
    # A question was searched for if all corpora were searched for the whole split that it is from.
    searched = all(
        eval_set.split_sha256 in {benchmark.data_sha256 for benchmark in record.benchmarks}
        for record in records
    )
    groups: dict[str, ContaminationGroup] = {}
    for question in eval_set.questions:
        digest = short_hash(question.content_sha256)
        other: ContaminationGroup = "not found" if searched else "not searched"
        groups[question.id] = "trained" if digest in trained else "removed" if digest in removed else other
    if count := list(groups.values()).count("trained"):
        warn(
            f"{eval_set.task.name}: {count} of {len(groups)} questions are in training documents "
            '(corpus.contaminated = "keep"); their accuracy may measure memory and is reported separately'
        )
    return groups


def score_groups(
    rows: Sequence[QuestionRow], groups: QuestionGroups
) -> dict[ContaminationGroup, SubsetScore]:
    """Return the accuracy of one model on each group of questions that has any."""
    rows_by_group: dict[ContaminationGroup, list[QuestionRow]] = {}
    for row in rows:
        if row.id in groups:
            rows_by_group.setdefault(groups[row.id], []).append(row)
    return {
        group: SubsetScore(
            n=len(members),
            accuracy=sum(row.correct for row in members) / len(members),
            interval=wilson_interval(sum(row.correct for row in members), len(members)),
        )
        for group, members in sorted(rows_by_group.items())
    }
