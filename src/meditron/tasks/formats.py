"""Formats of published datasets of multiple-choice questions, and the plain format for your own questions.

Everything that is specific to one dataset is in its `DatasetFormat`: fields, skipped rows, split, groups.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meditron.tasks.choices import NO_ANSWER, NO_OPTIONS, MalformedRow, answer_keys, read_options
from meditron.tasks.drafts import (
    QUESTION_KEYS,
    REPEATED,
    QuestionDraft,
    read_medxpertqa_draft,
    read_plain_draft,
    read_pubmedqa_draft,
    read_standard_draft,
    read_truthfulqa_best_draft,
    read_truthfulqa_mc1_draft,
)
from meditron.tasks.file_rows import SourceRow

__all__ = ["FORMATS", "DatasetFormat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFormat:
    """A format of question files: how to recognize it, and how to read its rows."""

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    """Returns True if the fields of a file's first row are those of this format."""
    read_draft: Callable[[SourceRow], QuestionDraft]
    """Reads one row; raises MalformedRow."""
    template: str
    """Name of the default prompt template."""
    version: int = 1
    """Version, increased whenever the same row gives another question."""
    dataset: str = ""
    """Name of the published dataset; empty if the format is not that of one dataset."""
    published_files: tuple[str, ...] = ()
    """Names of the published files, for messages."""
    title: str = "Multiple-choice questions"
    licence: str = "not stated"
    origin: str = "a file of one's own"
    skipped_reasons: frozenset[str] = frozenset({NO_ANSWER})
    """Reasons for which malformed rows are skipped and counted; any other malformed row is an error."""
    test_ids: str | None = None
    """Glob of a JSON file in the same folder that maps the test split's ids to gold answers. None: the format
    has no such file, and all questions are in both splits."""
    group_from_file: Callable[[str], str] | None = None
    """Returns a question's group, given the file name without suffixes; used for rows without a group."""


def _has_fields(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda fields: set(names) <= fields.keys()


def _is_medqa(fields: Mapping[str, Any]) -> bool:
    """Distinguish MedQA from other datasets with the same fields, by fields that only MedQA has."""
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
        # Options in a wrong form still show that the file has questions; the reader's error names the line.
        if error.reason == NO_OPTIONS:
            return False
    return bool(answer_keys(fields)) and any(name in fields for name in QUESTION_KEYS)


FORMATS: tuple[DatasetFormat, ...] = (
    DatasetFormat(
        name="plain",
        matches=_has_fields("question", "options", "gold"),
        read_draft=read_plain_draft,
        template="letters",
        skipped_reasons=frozenset(),
    ),
    DatasetFormat(
        name="medqa",
        matches=_is_medqa,
        read_draft=read_standard_draft,
        template="letters",
        dataset="MedQA",
        published_files=("US/test.jsonl", "phrases_no_exclude_test.jsonl"),
        title="MedQA (USMLE): questions of the United States Medical Licensing Examination",
        licence="MIT",
        origin="Jin et al. 2020, arXiv 2009.13081",
    ),
    DatasetFormat(
        name="medmcqa",
        matches=_has_fields("question", "opa", "opb", "cop"),
        read_draft=read_standard_draft,
        template="letters",
        dataset="MedMCQA",
        published_files=("dev.json",),
        title="MedMCQA: questions of Indian medical entrance examinations",
        licence="MIT",
        origin="Pal et al. 2022, arXiv 2203.14371",
        skipped_reasons=frozenset({NO_ANSWER, REPEATED}),
    ),
    DatasetFormat(
        name="pubmedqa",
        matches=_is_pubmedqa,
        read_draft=read_pubmedqa_draft,
        template="yes-no-maybe",
        dataset="PubMedQA",
        published_files=("ori_pqal.json",),
        title="PubMedQA: does the abstract answer its question with yes, no or maybe",
        licence="MIT",
        origin="Jin et al. 2019, arXiv 1909.06146",
        # Name of the file in the authors' repository.
        test_ids="test_ground_truth*.json",
    ),
    DatasetFormat(
        name="mmlu",
        matches=_is_mmlu,
        read_draft=read_standard_draft,
        template="letters",
        dataset="MMLU",
        published_files=("anatomy_test.csv",),
        title="MMLU: examination questions of many subjects",
        licence="MIT",
        origin="Hendrycks et al. 2021, arXiv 2009.03300",
        skipped_reasons=frozenset({NO_ANSWER, REPEATED}),
        # The subject is part of the file name: `anatomy_test.csv`.
        group_from_file=lambda stem: re.sub("_(dev|val|test)$", "", stem),
    ),
    DatasetFormat(
        name="truthfulqa",
        matches=_has_fields("question", "mc1_targets"),
        read_draft=read_truthfulqa_mc1_draft,
        template="texts",
        dataset="TruthfulQA",
        published_files=("mc_task.json", "TruthfulQA.csv"),
        title="TruthfulQA, MC1: the true answer among common misconceptions",
        licence="Apache-2.0",
        origin="Lin et al. 2022, arXiv 2109.07958",
    ),
    DatasetFormat(
        name="truthfulqa-csv",
        matches=_has_fields("question", "best_answer", "incorrect_answers"),
        read_draft=read_truthfulqa_best_draft,
        template="texts",
        title="TruthfulQA: the best answer among the incorrect ones",
        licence="Apache-2.0",
        origin="Lin et al. 2022, arXiv 2109.07958",
    ),
    DatasetFormat(
        name="medxpertqa",
        matches=_has_fields("question", "options", "label", "medical_task", "body_system"),
        read_draft=read_medxpertqa_draft,
        template="letters",
        version=2,  # version 1 was the general format, which left the options in the question
        dataset="MedXpertQA",
        published_files=("Text/test.jsonl",),
        title="MedXpertQA: expert-level medical questions with ten options",
        licence="MIT",
        origin="Zuo et al. 2025, arXiv 2501.18362",
    ),
    DatasetFormat(
        name="medbullets",
        matches=_has_fields("link", "question", "opa", "opd", "answer_idx", "explanation"),
        read_draft=read_standard_draft,
        template="letters",
        dataset="Medbullets",
        published_files=("medbullets_op5.csv",),
        title="Medbullets: questions in the style of the USMLE, steps 2 and 3",
        origin="Chen et al. 2024, arXiv 2402.18060",
    ),
    DatasetFormat(
        name="multiple-choice",
        matches=_is_multiple_choice,
        read_draft=read_standard_draft,
        template="letters",
    ),
)
"""Known formats. The first that matches is used, so specific formats come before general ones."""
