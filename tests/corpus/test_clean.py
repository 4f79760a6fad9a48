"""Cleaning damages nothing: what medical text needs stays, and cleaning twice changes nothing more."""

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from meditron.corpus.clean import clean_text, render_document
from meditron.sources.document import Document, Section

TEXT = st.text(
    st.characters() | st.sampled_from(" \t\n\r\xa0\xad\u2009\u200b\u0301\ufeff<>[]%\\"), max_size=80
)


@pytest.mark.parametrize(
    "text",
    [
        "CRP <5 mg/l in 3 and >10 in 4",
        "OR 1.7 [95% CI 1.1-2.3]; [18F]FDG",
        "\\noral intake",
        "10² µg, 5 Å, ½, ﬁ",
        "COVID-19 IN THE ICU",
        "2-3\n0.5\n12",
        "see https://example.org/a?b=1#c",
        "a–b — “c” … d′",
        "می\u200cخواهم",
    ],
)
def test_text_that_stays_unchanged(text: str) -> None:
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("e\u0301", "é"),
        ("an\xademia\u200b", "anemia"),
        ("\ufeffa\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("p\u2009<\xa0.05  x", "p < .05 x"),
        ("a \n\n\n\n b", "a\n\nb"),
        ("a\x00\x07b", "ab"),
        ("\ud800x", "\ufffdx"),
    ],
)
def test_text_that_is_normalised(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@given(TEXT)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)


@given(TEXT)
def test_no_letter_digit_or_sign_is_lost(text: str) -> None:
    def seen(text: str) -> list[str]:
        """All that has a glyph, decomposed: NFC moves nothing else."""
        plain = unicodedata.normalize("NFD", text)
        return sorted(c for c in plain if unicodedata.category(c)[0] in "LNPSM")

    assume(not set("âÃÎÏÂ") & set(text + clean_text(text)))  # the leads of mistaken encodings
    assert [c for c in seen(clean_text(text)) if c != "\ufffd"] == [c for c in seen(text) if c != "\ufffd"]


def test_documents_are_rendered_with_labels() -> None:
    sections = (
        Section("To see.", "OBJECTIVE", "OBJECTIVE"),
        Section("", "TRIAL"),
        Section("Bare."),
        Section("A\nB", "Long"),
        Section("In us.", None, "METHODS"),
    )
    text, parts = render_document(Document("x:1", "x", "Title.", sections))
    assert text == "Title.\nOBJECTIVE: To see.\nBare.\n\nLong\nA\nB\nIn us."
    assert [(text[part.start : part.end], part.label, part.category) for part in parts] == [
        ("To see.", "OBJECTIVE", "OBJECTIVE"),
        ("A\nB", "Long", None),
        ("In us.", None, "METHODS"),
    ]
    assert render_document(Document("x:2", "x", "", (Section("only"),))) == ("only", ())


def test_headings_of_enclosing_sections_are_lines_above_the_first_of_them() -> None:
    sections = (
        Section("We did.", "Design", None, ("Methods",)),
        Section("A\nB", "Dose", None, ("Methods", "Drugs")),
        Section("C", None, None, ("Methods",)),
        Section("D", "Results"),
        Section("E", "Main", None, ("Results",)),
    )
    text, parts = render_document(Document("x:1", "x", "Title.", sections))
    assert text == ("Title.\n\nMethods\nDesign: We did.\n\nDrugs\n\nDose\nA\nB\nC\nResults: D\nMain: E")
    assert [part.label for part in parts] == ["Design", "Dose", "Results", "Main"]


@given(TEXT, st.lists(st.builds(Section, TEXT, st.none() | TEXT, st.none() | st.just("METHODS"))))
def test_spans_are_the_texts_of_the_sections(title: str, sections: list[Section]) -> None:
    text, parts = render_document(Document("x:1", "x", title, tuple(sections)))
    labelled = [s for s in sections if clean_text(s.text) and (clean_text(s.label or "") or s.category)]
    assert [text[part.start : part.end] for part in parts] == [
        clean_text(section.text) for section in labelled
    ]
    assert [part.label or "" for part in parts] == [clean_text(section.label or "") for section in labelled]
    assert text == text.strip("\n")
