"""Rubric evaluation of one or several models: all answers, then all judgements, then scores and pages."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from meditron.core.console import warn
from meditron.core.statistics import clustered_mean, paired_bootstrap
from meditron.evaluate.config import EvalOptions, ModelPair
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows_file import RowsFile
from meditron.evaluate.rubric.agreement import compare_with_humans, judge_agreement
from meditron.evaluate.rubric.asking import (
    AnswerSettings,
    Judge,
    answer_conversations,
    is_own_judge,
    judge_answers,
)
from meditron.evaluate.rubric.judge_prompt import DEFAULT_PROMPT, read_judge_prompt
from meditron.evaluate.rubric.labels import HumanLabels, read_labels
from meditron.evaluate.rubric.rows import AnswerRow, JudgementRow, rubric_file_name
from meditron.evaluate.rubric.scores import (
    JudgedAnswer,
    group_scores,
    judge_scores,
    mean_score,
    score_bounds,
)
from meditron.report.rubrics import MOST_ANSWERS, AnswerView, CriterionView, write_rubric_page
from meditron.store.identity import sha256_of_hashes
from meditron.store.results import Comparison
from meditron.store.rubric_results import JudgeRecord, RubricScore
from meditron.tasks.rubrics import RubricSet

__all__ = ["ANSWERS", "JUDGEMENTS", "PAGE", "RubricEvaluation", "RubricFigures"]

ANSWERS, JUDGEMENTS, PAGE = ".answers.jsonl", ".judgements.jsonl", ".html"
"""Ends of the names of the files of a set."""


@dataclass(frozen=True)
class RubricFigures:
    """The scores and differences of a rubric evaluation."""

    scores: dict[str, dict[str, RubricScore]]
    """Model → set → score."""
    differences: list[Comparison]


class RubricEvaluation:
    """A rubric evaluation in progress, as a context manager that closes its rows files.

    Args:
        sets: The sets of rubrics; may be empty.
        judges: Opened lazily; each is closed after its judgements.
        options: The evaluation options.
        out: Folder of the rows files and pages.
        seed: Seed of sampled texts and of the bootstrap.
        prompt: The judges' prompt file; default: the package's own.
        labels: File of human labels.
        keep_other_rows: Keep rows of other models and settings in the files.
    """

    def __init__(
        self,
        sets: Sequence[RubricSet],
        judges: Sequence[EvalModel],
        options: EvalOptions,
        out: Path,
        *,
        seed: int,
        prompt: Path | None = None,
        labels: Path | None = None,
        keep_other_rows: bool = False,
    ) -> None:
        self._sets = [rubrics.first(options.questions) for rubrics in sets]
        self._options, self._out, self._seed = options, out, seed
        self._keep = keep_other_rows
        judge_prompt = read_judge_prompt(prompt or DEFAULT_PROMPT)
        self._labels: HumanLabels | None = read_labels(labels) if labels else None
        self._judges = [
            Judge(
                judge,
                judge_prompt,
                options.judge_max_tokens,
                options.judge_temperature,
                options.judge_attempts,
                seed,
            )
            for judge in judges
        ]
        self._settings = AnswerSettings(
            max_tokens=options.max_tokens,
            temperature=options.temperature or 0.0,
            seed=seed,
            plain=options.prompt_form == "raw",
        )
        self._stack = ExitStack()
        self._answer_files: dict[str, RowsFile[AnswerRow]] = {}
        self._judgement_files: dict[str, RowsFile[JudgementRow]] = {}
        self._answers: dict[str, dict[str, list[AnswerRow]]] = {rubrics.name: {} for rubrics in self._sets}
        self._judgements: dict[tuple[str, str], list[list[list[JudgementRow]]]] = {}
        self._records: list[JudgeRecord] = []
        self._own: dict[tuple[str, str], list[bool]] = {}

    def __enter__(self) -> Self:
        for rubrics in self._sets:
            name = rubrics.name
            self._answer_files[name] = self._stack.enter_context(
                RowsFile(self._out / rubric_file_name(name, ANSWERS), AnswerRow)
            )
            self._judgement_files[name] = self._stack.enter_context(
                RowsFile(self._out / rubric_file_name(name, JUDGEMENTS), JudgementRow)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def answer(self, model: EvalModel) -> None:
        """Let a model answer every conversation."""
        for rubrics in self._sets:
            rows = answer_conversations(model, rubrics, self._settings, self._answer_files[rubrics.name])
            self._answers[rubrics.name][model.name] = rows
            if unfinished := sum(row.unfinished for row in rows):
                warn(
                    f"{rubrics.name}: {unfinished} of {len(rows)} answers of {model.name} were cut off at "
                    f"max_tokens = {self._settings.max_tokens}"
                )

    def judge(self) -> None:
        """Let every judge, one after the other, judge all answers."""
        if not self._sets:
            return
        for judge in self._judges:
            with judge.model:
                self._records.append(judge.record())
                for rubrics in self._sets:
                    for model, answers in self._answers[rubrics.name].items():
                        judgements = judge_answers(
                            judge, rubrics, answers, self._judgement_files[rubrics.name]
                        )
                        self._judgements.setdefault((rubrics.name, model), []).append(judgements)
                        own = is_own_judge(judge, answers[0])
                        self._own.setdefault((rubrics.name, model), []).append(own)
                        self._warn(judge, rubrics, model, judgements, own)

    def _warn(
        self,
        judge: Judge,
        rubrics: RubricSet,
        model: str,
        judgements: Iterable[Iterable[JudgementRow]],
        own: bool,
    ) -> None:
        verdicts = [row.met for group in judgements for row in group]
        if missing := verdicts.count(None):
            warn(
                f"{rubrics.name}: {judge.model.name} gave no verdict on {missing} of {len(verdicts)} "
                f"criteria of {model}'s answers"
            )
        if own:
            warn(f"{judge.model.name} judges its own answers, which models tend to prefer")

    def finish(self, pairs: Sequence[ModelPair]) -> RubricFigures:
        """Sort the rows files, compute scores and differences, and write the pages."""
        scores: dict[str, dict[str, RubricScore]] = {}
        differences = []
        for rubrics in self._sets:
            judged = {model: self._judged_answers(rubrics, model) for model in self._answers[rubrics.name]}
            for model, answers in judged.items():
                scores.setdefault(model, {})[rubrics.name] = self._score(rubrics, model, answers)
            differences += [self._difference(rubrics, pair, judged) for pair in pairs]
            self._rewrite(rubrics)
            chosen = [
                answers[place]
                for place in range(min(MOST_ANSWERS, len(rubrics.rows)))
                for answers in judged.values()
            ]
            write_rubric_page(
                self._out / rubric_file_name(rubrics.name, PAGE),
                [by_set[rubrics.name] for by_set in scores.values()],
                [self._view(answer) for answer in chosen],
            )
        return RubricFigures(scores, [each for each in differences if each is not None])

    def _judged_answers(self, rubrics: RubricSet, model: str) -> list[JudgedAnswer]:
        judges = self._judgements[rubrics.name, model]
        return [
            JudgedAnswer(
                row, answer, tuple(tuple(judge[place]) for judge in judges), self._options.judge_aggregate
            )
            for place, (row, answer) in enumerate(
                zip(rubrics.rows, self._answers[rubrics.name][model], strict=True)
            )
        ]

    def _score(self, rubrics: RubricSet, model: str, answers: Sequence[JudgedAnswer]) -> RubricScore:
        bootstrap = {"seed": self._seed, "resamples": self._options.resamples}
        mean = mean_score(answers, [answer.score for answer in answers], **bootstrap)
        credits = [credit for answer in answers for credit in answer.credits]
        given = [credit for credit in credits if credit is not None]
        first = answers[0].answer
        return RubricScore(
            model=model,
            rubrics=rubrics.name,
            data=rubrics.file_name,
            rubrics_sha256=rubrics.file_sha256,
            rows_sha256=rubrics.rows_sha256,
            prompt_sha256=sha256_of_hashes(answer.answer.prompt_sha256 for answer in answers),
            score=mean.score,
            interval=mean.interval,
            mean=mean.mean,
            bounds=score_bounds(answers),
            n=mean.n,
            unscored=len(answers) - mean.n,
            clusters=len({answer.row.cluster for answer in answers}),
            criteria=len(credits),
            missing=len(credits) - len(given),
            tied=sum(answer.tied for answer in answers),
            met_rate=sum(given) / len(given) if given else None,
            groups=tuple(group_scores(answers, **bootstrap)),
            judges=tuple(self._records),
            aggregate=self._options.judge_aggregate,
            judge_scores=tuple(judge_scores(answers, own=self._own[rubrics.name, model], **bootstrap)),
            judge_agreement=judge_agreement(answers, **bootstrap),
            human_agreement=compare_with_humans(answers, self._labels, **bootstrap) if self._labels else None,
            engine=first.engine,
            dtype=first.dtype,
            prompt_form=first.prompt_form,
            temperature=first.temperature,
            max_tokens=first.max_tokens,
            seed=self._seed,
            unfinished=sum(answer.answer.unfinished for answer in answers),
            answers=rubric_file_name(rubrics.name, ANSWERS),
            judgements=rubric_file_name(rubrics.name, JUDGEMENTS),
            page=rubric_file_name(rubrics.name, PAGE),
        )

    def _difference(
        self, rubrics: RubricSet, pair: ModelPair, judged: Mapping[str, Sequence[JudgedAnswer]]
    ) -> Comparison | None:
        """Return the difference `model` minus `against`, over conversations on which both have a score."""
        both = [
            (model.score, against.score, model.row.cluster)
            for model, against in zip(judged[pair.model], judged[pair.against], strict=True)
            if model.score is not None and against.score is not None
        ]
        if len(both) < 2:
            return None
        first, second, clusters = zip(*both, strict=True)
        bootstrap = {"seed": self._seed, "resamples": self._options.resamples}
        difference = paired_bootstrap(first, second, **bootstrap)
        repeated = len({*clusters}) < len(clusters)
        return Comparison(
            a=pair.against,
            b=pair.model,
            what=f"rubric score, {rubrics.name}",
            task=rubrics.name,
            n=difference.n,
            difference=difference.difference,
            interval=difference.interval,
            p=difference.p,
            method=difference.method,
            detectable=difference.detectable,
            clusters=len({*clusters}) if repeated else 0,
            clustered_interval=clustered_mean(
                [a - b for a, b in zip(first, second, strict=True)],
                clusters,
                bounds=(-float("inf"), float("inf")),
                **bootstrap,
            )
            if repeated
            else None,
        )

    def _rewrite(self, rubrics: RubricSet) -> None:
        answers = [row for rows in self._answers[rubrics.name].values() for row in rows]
        judgements = [
            row
            for (name, _), judges in self._judgements.items()
            if name == rubrics.name
            for judge in judges
            for group in judge
            for row in group
        ]
        answer_file, judgement_file = self._answer_files[rubrics.name], self._judgement_files[rubrics.name]
        answer_file.rewrite_sorted([*(answer_file.rows if self._keep else []), *answers])
        judgement_file.rewrite_sorted([*(judgement_file.rows if self._keep else []), *judgements])

    def _view(self, answer: JudgedAnswer) -> AnswerView:
        criteria = []
        for place, criterion in enumerate(answer.row.criteria):
            rows = [judge[place] for judge in answer.judgements]
            key = (answer.row.id, answer.answer.answer_sha256, criterion.text)
            criteria.append(
                CriterionView(
                    text=criterion.text,
                    points=criterion.points,
                    tags=criterion.tags,
                    credit=answer.credits[place],
                    verdicts={row.judge: row.met for row in rows},
                    reasons={row.judge: row.outputs[-1] if row.outputs else "" for row in rows},
                    human=self._labels.verdict(key) if self._labels else None,
                )
            )
        return AnswerView(
            id=answer.row.id,
            model=answer.answer.model,
            messages=answer.row.messages,
            answer=answer.answer.answer,
            score=answer.score,
            tags=answer.row.tags,
            criteria=criteria,
        )
