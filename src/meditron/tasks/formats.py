"""Formats of published sets of multiple-choice questions, and the plain format for your own.

Everything that is special about a set is part of its definition: fields, skipped rows, the split, groups.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meditron.tasks.choices import NO_ANSWER, NO_OPTIONS, MalformedRow, answer_keys, read_options
from meditron.tasks.drafts import (
    QUESTION_KEYS,
    REPEATED,
    Draft,
    plain_draft,
    pubmedqa_draft,
    standard_draft,
    truthfulqa_best_draft,
    truthfulqa_mc1_draft,
)
from meditron.tasks.file_rows import SourceRow

__all__ = ["FORMATS", "DatasetFormat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFormat:
    """A format of question files: how it is recognized, and how a row becomes a question."""

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    """Recognizes the format by the fields of the first row; the first format that matches is used."""
    draft: Callable[[SourceRow], Draft]
    """Reads a row; raises MalformedRow."""
    template: str
    """Name of the default prompt template."""
    version: int = 1
    """Raised whenever a row gives another question."""
    dataset: str = ""
    """Name of the published set."""
    files: tuple[str, ...] = ()
    """Names of its published files, for messages."""
    title: str = "Multiple-choice questions"
    licence: str = "not stated"
    origin: str = "a file of one's own"
    skipped: frozenset[str] = frozenset({NO_ANSWER})
    """Reasons for which rows of the published set are skipped and counted. A row that is not a question for
    another reason is an error."""
    test_ids: str | None = None
    """Glob of the file, beside the questions, whose keys are the test split's ids; its values are the gold
    answers. Without one all questions are both splits."""
    group_from_file: Callable[[str], str] | None = None
    """Returns the group of rows without one from the file's name without its suffixes."""


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda fields: set(names) <= fields.keys()


def _is_medqa(fields: Mapping[str, Any]) -> bool:
    """Tell MedQA from other sets with the same fields by fields that only its publications have."""
    if not {"question", "options", "answer"} <= fields.keys():
        return False
    return bool({"meta_info", "metamap_phrases", "answer_idx"} & fields.keys()) or (
        isinstance(fields["options"], list) and str(fields["options"][:1]).startswith("['A. ")
    )


def _is_pubmedqa(fields: Mapping[str, Any]) -> bool:
    return {"question", "final_decision"} <= fields.keys() and bool({"context", "contexts"} & fields.keys())


def _is_mmlu(fields: Mapping[str, Any]) -> bool:
    columns = {"question", "a", "b", "c", "d", "answer"} <= fields.keys() and "e" not in fields
    return columns or {"question", "choices", "answer", "subject"} <= fields.keys()


def _is_multiple_choice(fields: Mapping[str, Any]) -> bool:
    try:
        read_options(fields)
    except MalformedRow as error:
        # Options in a wrong form still make the file one of questions: its error names the line.
        if error.reason == NO_OPTIONS:
            return False
    return bool(answer_keys(fields)) and any(name in fields for name in QUESTION_KEYS)


FORMATS: tuple[DatasetFormat, ...] = (
    DatasetFormat(
        name="plain",
        matches=_has("question", "options", "gold"),
        draft=plain_draft,
        template="letters",
        skipped=frozenset(),
    ),
    DatasetFormat(
        name="medqa",
        matches=_is_medqa,
        draft=standard_draft,
        template="letters",
        dataset="MedQA",
        files=("US/test.jsonl", "phrases_no_exclude_test.jsonl"),
        title="MedQA (USMLE): questions of the United States Medical Licensing Examination",
        licence="MIT",
        origin="Jin et al. 2020, arXiv 2009.13081",
    ),
    DatasetFormat(
        name="medmcqa",
        matches=_has("question", "opa", "opb", "cop"),
        draft=standard_draft,
        template="letters",
        dataset="MedMCQA",
        files=("dev.json",),
        title="MedMCQA: questions of Indian medical entrance examinations",
        licence="MIT",
        origin="Pal et al. 2022, arXiv 2203.14371",
        skipped=frozenset({NO_ANSWER, REPEATED}),
    ),
    DatasetFormat(
        name="pubmedqa",
        matches=_is_pubmedqa,
        draft=pubmedqa_draft,
        template="yes-no-maybe",
        dataset="PubMedQA",
        files=("ori_pqal.json",),
        title="PubMedQA: does the abstract answer its question with yes, no or maybe",
        licence="MIT",
        origin="Jin et al. 2019, arXiv 1909.06146",
        # As in its authors' repository.
        test_ids="test_ground_truth*.json",
    ),
    DatasetFormat(
        name="mmlu",
        matches=_is_mmlu,
        draft=standard_draft,
        template="letters",
        dataset="MMLU",
        files=("anatomy_test.csv",),
        title="MMLU: examination questions of many subjects",
        licence="MIT",
        origin="Hendrycks et al. 2021, arXiv 2009.03300",
        skipped=frozenset({NO_ANSWER, REPEATED}),
        # The subject is the file's name: `anatomy_test.csv`.
        group_from_file=lambda stem: re.sub("_(dev|val|test)$", "", stem),
    ),
    DatasetFormat(
        name="truthfulqa",
        matches=_has("question", "mc1_targets"),
        draft=truthfulqa_mc1_draft,
        template="texts",
        dataset="TruthfulQA",
        files=("mc_task.json", "TruthfulQA.csv"),
        title="TruthfulQA, MC1: the true answer among common misconceptions",
        licence="Apache-2.0",
        origin="Lin et al. 2022, arXiv 2109.07958",
    ),
    DatasetFormat(
        name="truthfulqa-csv",
        matches=_has("question", "best_answer", "incorrect_answers"),
        draft=truthfulqa_best_draft,
        template="texts",
        title="TruthfulQA: the best answer among the incorrect ones",
        licence="Apache-2.0",
        origin="Lin et al. 2022, arXiv 2109.07958",
    ),
    DatasetFormat(
        name="multiple-choice", matches=_is_multiple_choice, draft=standard_draft, template="letters"
    ),
)
"""Known formats, in the order in which they are tried: a new one is an entry here."""
