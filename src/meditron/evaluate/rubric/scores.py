"""Scores of open answers by their rubrics, in HealthBench's form.

The score of an answer is its achieved points divided by the possible positive points; the score of a model is
the mean over conversations, limited to the range 0 to 1 (Arora et al. 2025, arXiv 2505.08775;
`calculate_score` and `_compute_clipped_stats` in simple-evals' healthbench_eval.py). The score of a tag of
conversations is the mean over those that have it; for a tag of criteria, only the criteria that have it count
in each conversation, and conversations without positive points among them are left out.

A criterion without a verdict is in neither sum. `bounds` shows how far such gaps could move the score.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from meditron.core.statistics import Interval, clustered_mean
from meditron.evaluate.rubric.rows import AnswerRow, JudgementRow
from meditron.store.rubric_results import Aggregate, JudgeScore, RubricGroup
from meditron.tasks.rubrics import Criterion, RubricRow

__all__ = [
    "Credits",
    "JudgedAnswer",
    "MeanScore",
    "answer_score",
    "combine",
    "group_scores",
    "judge_scores",
    "mean_score",
    "score_bounds",
]

Credits = Sequence[float | None]
"""For each criterion, the share of its points that the answer gets: 0, 1, or between them for the mean of
several judges; None without a verdict."""


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer with the verdicts of every judge."""

    row: RubricRow
    answer: AnswerRow
    judgements: tuple[tuple[JudgementRow, ...], ...]
    """For each judge, a judgement of each criterion."""
    aggregate: Aggregate

    @cached_property
    def credits(self) -> Credits:
        """The credits of all judges together."""
        return [combine(verdicts, self.aggregate) for verdicts in self._verdicts]

    @cached_property
    def _verdicts(self) -> list[tuple[bool | None, ...]]:
        """For each criterion, the verdict of every judge."""
        return list(zip(*([row.met for row in judge] for judge in self.judgements), strict=True))

    @property
    def tied(self) -> int:
        """Number of criteria without a credit although a judge has a verdict."""
        return sum(
            credit is None and any(verdict is not None for verdict in verdicts)
            for credit, verdicts in zip(self.credits, self._verdicts, strict=True)
        )

    def credits_of(self, judge: int) -> Credits:
        """Return the credits by one judge's verdicts."""
        return [None if row.met is None else float(row.met) for row in self.judgements[judge]]

    @cached_property
    def score(self) -> float | None:
        """Score of the answer; None if no positive criterion has a verdict."""
        return answer_score(self.row.criteria, self.credits)


def combine(verdicts: Iterable[bool | None], aggregate: Aggregate) -> float | None:
    """Combine the verdicts of several judges on one criterion.

    Returns:
        The share of judges that find it met, of those with a verdict (`mean`); 1 or 0 if more or fewer than
        half of them do (`majority`); None without a verdict, and for a tied majority.
    """
    given = [verdict for verdict in verdicts if verdict is not None]
    if not given:
        return None
    met = sum(given) / len(given)
    if aggregate == "mean":
        return met
    return None if met == 0.5 else float(met > 0.5)


def answer_score(criteria: Sequence[Criterion], credits: Credits, tag: str | None = None) -> float | None:
    """Return achieved points / possible positive points, of the criteria with a verdict.

    Args:
        criteria: The criteria of the answer.
        credits: Their credits.
        tag: Only criteria with this tag count; default: all.

    Returns:
        The score, which is negative if negative criteria outweigh the others; None without positive points.
    """
    known = [
        (criterion.points, credit)
        for criterion, credit in zip(criteria, credits, strict=True)
        if credit is not None and (tag is None or tag in criterion.tags)
    ]
    possible = sum(points for points, _ in known if points > 0)
    return sum(points * credit for points, credit in known) / possible if possible else None


def score_bounds(answers: Sequence[JudgedAnswer]) -> tuple[float, float]:
    """Return the lowest and the highest score that any verdicts in place of the missing ones would give."""
    ends = []
    for best in (False, True):
        # At best, a criterion is met if it has positive points; at worst, if it has negative ones.
        scores = [
            answer_score(
                answer.row.criteria,
                [
                    float((criterion.points > 0) == best) if credit is None else credit
                    for criterion, credit in zip(answer.row.criteria, answer.credits, strict=True)
                ],
            )
            for answer in answers
        ]
        ends.append(float(np.clip(np.mean([score for score in scores if score is not None]), 0, 1)))
    return ends[0], ends[1]


@dataclass(frozen=True)
class MeanScore:
    """The mean score of some conversations."""

    n: int
    """Number of conversations with a score."""
    mean: float | None
    interval: Interval | None

    @property
    def score(self) -> float | None:
        """The mean, limited to the range 0 to 1."""
        return None if self.mean is None else min(1.0, max(0.0, self.mean))


def mean_score(
    answers: Sequence[JudgedAnswer], scores: Sequence[float | None], *, seed: int, resamples: int
) -> MeanScore:
    """Compute the mean of the scores that are not None, with its interval by conversation."""
    known = [
        (score, answer.row.cluster)
        for score, answer in zip(scores, answers, strict=True)
        if score is not None
    ]
    if not known:
        return MeanScore(0, None, None)
    values, clusters = zip(*known, strict=True)
    interval = clustered_mean(values, clusters, seed=seed, resamples=resamples, bounds=(0, 1))
    # An interval below 0 is limited to a point, which is no interval.
    if interval is not None and interval.low >= interval.high:
        interval = None
    return MeanScore(len(values), math.fsum(values) / len(values), interval)


def group_scores(answers: Sequence[JudgedAnswer], *, seed: int, resamples: int) -> list[RubricGroup]:
    """Compute the score of every tag of conversations, then of every tag of criteria, each sorted by name."""
    groups = []
    for tag in sorted({tag for answer in answers for tag in answer.row.tags}):
        tagged = [answer for answer in answers if tag in answer.row.tags]
        mean = mean_score(tagged, [answer.score for answer in tagged], seed=seed, resamples=resamples)
        groups.append(
            RubricGroup(tag=tag, of="conversations", n=mean.n, score=mean.score, interval=mean.interval)
        )
    for tag in sorted({tag for answer in answers for each in answer.row.criteria for tag in each.tags}):
        scores = [answer_score(answer.row.criteria, answer.credits, tag) for answer in answers]
        mean = mean_score(answers, scores, seed=seed, resamples=resamples)
        groups.append(RubricGroup(tag=tag, of="criteria", n=mean.n, score=mean.score, interval=mean.interval))
    return groups


def judge_scores(
    answers: Sequence[JudgedAnswer], *, own: Sequence[bool], seed: int, resamples: int
) -> list[JudgeScore]:
    """Compute the score by each judge alone.

    `own` says of each judge whether it is the model that answered.
    """
    results = []
    for place, judged_itself in enumerate(own):
        rows = [row for answer in answers for row in answer.judgements[place]]
        scores = [answer_score(answer.row.criteria, answer.credits_of(place)) for answer in answers]
        mean = mean_score(answers, scores, seed=seed, resamples=resamples)
        given = [row.met for row in rows if row.met is not None]
        results.append(
            JudgeScore(
                judge=rows[0].judge,
                score=mean.score,
                interval=mean.interval,
                met_rate=sum(given) / len(given) if given else None,
                judgements=len(rows),
                missing=len(rows) - len(given),
                retried=sum(len(row.outputs) > 1 for row in rows),
                own_answers=judged_itself,
            )
        )
    return results
