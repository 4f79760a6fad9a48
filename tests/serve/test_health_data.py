"""Warnings about personal health data: what is found, and that exam questions are not."""

import gzip
import json
import time

import pytest

from meditron.serve.health_data import HealthDataSpan, find_health_data


@pytest.mark.parametrize(
    ("text", "kind", "part"),
    [
        ("Patient: Jane Doe has a cough.", "a person's name", "Jane Doe"),
        ("MRN 12345678", "a record number", "12345678"),
        ("DOB 03/04/1970", "a date of birth", "03/04/1970"),
        ("write to ann@hospital.org", "an e-mail address", "ann@hospital.org"),
        ("NHS number 943 476 5919", "a national identification number", "943 476 5919"),
        ("admitted on 12 March 2024 with fever", "a date of care", "12 March 2024"),
        ("she was discharged 2024-03-15", "a date of care", "2024-03-15"),
        ("a 93-year-old woman", "an age over 89", "93-year-old"),
        ("I have had severe chest pain since May", "your own health", "I have had severe chest pain"),
        ("I’m pregnant, may I take ibuprofen?", "your own health", "I’m pregnant"),
        ("I was diagnosed last week", "your own health", "I was diagnosed"),
        ("What does my blood test mean?", "your own health", "my blood test"),
        ("my mother was treated for cancer", "another person's health", "my mother was treated"),
        (
            "our patient, a smoker, has seizures",
            "another person's health",
            "our patient, a smoker, has seizures",
        ),
    ],
)
def test_personal_health_data_is_found(text, kind, part):
    assert find_health_data(text) == [HealthDataSpan(kind, part)]


@pytest.mark.parametrize(
    "text",
    [
        "What is hypertension?",
        "A 54-year-old man presents with chest pain and a blood pressure of 160/95 mmHg. What is next?",
        "A 23-year-old pregnant woman at 22 weeks gestation presents with burning upon urination.",
        "Compare metformin 500 mg with 850 mg in trials from 2010-2015 (PMID 12345678).",
        "I study diabetes and want to know which trials established statins.",
        "I am writing a review of heart failure; I have read about chemotherapy.",
        "My question: which dose is used in type 2 diabetes?",
        "The trial was published on 12 March 2024.",
        "How many people aged 85 years or over have dementia?",
    ],
)
def test_questions_about_medicine_are_not(text):
    assert find_health_data(text) == []


@pytest.mark.shared
def test_few_exam_questions_are(shared):
    """The ones that are have an age over 89, or quote a patient: `I have cancer`."""
    with gzip.open(shared / "data/medqa-usmle/test_4options.first1000.jsonl.gz", "rt") as file:
        questions = [json.loads(line)["question"] for line in file]
    found = [find_health_data(question) for question in questions]
    assert len(questions) == 1000
    assert sum(map(bool, found)) == 3


def test_each_kind_is_named_once_in_the_order_of_the_text():
    text = "Patient: Jane Doe, MRN 12345678, seen on 2024-03-15. Patient: John Roe."
    assert [span.kind for span in find_health_data(text)] == [
        *("a person's name", "a record number", "a date of care")
    ]


@pytest.mark.parametrize(
    "text", ["I have " * 20_000, "my patient " * 20_000, "admitted " * 20_000, "9" * 200_000]
)
def test_a_long_text_is_checked_in_a_moment(text):
    start = time.process_time()
    find_health_data(text)
    assert time.process_time() - start < 2
