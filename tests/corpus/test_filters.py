"""Filters, languages, licences, cut-off and quality: what is dropped for which reason, and what stays."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from meditron.core.errors import SourceError
from meditron.corpus.build import run
from meditron.corpus.candidate import Candidate
from meditron.corpus.config import CorpusConfig
from meditron.corpus.languages import detect_language
from meditron.corpus.passes import PassPipeline
from meditron.corpus.quality import quality_score
from meditron.corpus.text_statistics import text_statistics
from meditron.sources.document import Document, Section
from meditron.sources.medline import read
from meditron.store.jsonl import read_jsonl

from .test_build import artifacts

PROSE = (
    "In this trial, 120 patients with type 2 diabetes were assigned to metformin 850 mg or to placebo for 24 "
    "weeks. The mean HbA1c fell by 1.1% (95% CI 0.9-1.3; P<.001) with metformin, and by 0.2% with placebo. "
    "Nausea was reported by 12 of the 60 patients who received metformin, and by 5 of 60 of the others."
)
GERMAN = (
    "In dieser Studie wurden 120 Patienten mit Diabetes mellitus Typ 2 für 24 Wochen mit Metformin oder mit "
    "einem Placebo behandelt. Der mittlere HbA1c-Wert fiel unter Metformin um 1,1 Prozentpunkte und unter "
    "Placebo um 0,2. Über Übelkeit klagten 12 von 60 Patienten mit Metformin und 5 von 60 anderen."
)


def decide(
    text: str, document: dict[str, Any] | None = None, source: dict[str, Any] | None = None, **keys: Any
) -> str:
    """Return the drop reason of a document, or `kept`."""
    return process(text, document, source, **keys)[1]


def process(
    text: str, document: dict[str, Any] | None = None, source: dict[str, Any] | None = None, **keys: Any
) -> tuple[Candidate, str]:
    config = CorpusConfig.model_validate({"sources": {"x": {"from": "x", **(source or {})}}, **keys})
    pipeline = PassPipeline(config)
    candidate, code = pipeline.process_document(
        Document("x:1", "x", "", (Section(text),), **(document or {})), "x"
    )
    return candidate, pipeline.reason_text(code)


def test_texts_that_are_no_prose() -> None:
    assert decide(PROSE) == "kept"
    assert decide("12.5 3.4 (0.7) 8 9 10 " * 20) == "few words with letters"
    assert (
        decide("aspirin metformin warfarin heparin insulin " * 12, {"language": "en"}) == "few function words"
    )
    assert decide(PROSE + " ■◆▪" * 60) == "many symbols"
    assert (
        decide("\n".join([PROSE, *["Share this page with your friends and colleagues"] * 20]))
        == "repeated lines"
    )
    assert decide(f"{PROSE} " * 4) == "repeated word sequences"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("zh", "阿司匹林可以降低风险，但是会增加出血；“患者”应当咨询医生，不要自行停药！"),
        ("hi", "एस्पिरिन दिल के दौरे के जोखिम को कम करती है, लेकिन रक्तस्राव का खतरा बढ़ा सकती है।"),
        ("th", "แอสไพรินช่วยลดความเสี่ยงต่อภาวะกล้ามเนื้อหัวใจตาย แต่เพิ่มความเสี่ยงต่อการมีเลือดออก"),
        ("ar", "يقلل الأسبرين من خطر الإصابة بالنوبة القلبية، لكنه يزيد من خطر النزيف؛ هل يجب؟"),
        ("es", "¿Qué hace la aspirina? ¡Reduce el riesgo de un infarto, pero aumenta el de una hemorragia!"),
    ],
)
def test_signs_and_vowels_of_other_scripts_are_no_symbols(language: str, text: str) -> None:
    many = "\n".join(f"{text} {number}" for number in range(40))
    filters = {"max_repeated_ngrams": 1, "max_repeated_lines": 1, "min_letter_words": 0}
    assert text_statistics(many).symbols == 0
    assert decide(many, {"language": language}, languages=[language], filters=filters) == "kept"


CODE = (
    "def solve ( matrix , vector ) : return scipy . linalg . lu_solve ( factor , vector )\n" * 2
    + "\n".join(
        f"value_{number} = table_{number} [ index_{number} ] + offset_{number}" for number in range(40)
    )
)


def test_a_source_has_filters_of_its_own_and_the_other_keys_of_the_corpus() -> None:
    assert decide(CODE) == "few function words"
    assert decide(CODE, source={"filters": {"min_stop_words": 0}}) == "kept"
    of_source = {"filters": {"min_stop_words": 0}}
    assert decide(PROSE + " ■◆▪" * 60, source=of_source) == "many symbols"
    assert decide(PROSE + " ■◆▪" * 60, source=of_source, filters={"max_symbols": 1}) == "kept"
    assert decide("404 Not Found. " + "nginx " * 20, source={"filters": {"error_pages": False}}) == "kept"
    own = {"x": {"from": "x", "filters": {"max_symbols": 0.3}}, "y": {"from": "y"}}
    config = CorpusConfig.model_validate({"sources": own, "filters": {"min_stop_words": 0.1}})
    assert config.filters_of("x").model_dump() == config.filters.model_dump() | {"max_symbols": 0.3}
    assert config.filters_of("y") == config.filters
    # Another process gets the config as JSON, with all keys.
    assert CorpusConfig.model_validate(config.model_dump(mode="json", by_alias=True)) == config
    with pytest.raises(ValidationError, match="min_stop_word"):
        decide(PROSE, source={"filters": {"min_stop_word": 0}})


def test_the_report_states_the_filters_of_a_source_and_what_they_dropped(tmp_path: Path) -> None:
    for name in ("code", "notes"):
        rows = [{"id": f"{name}:{number}", "text": f"{CODE} {name} {number}"} for number in range(3)]
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*rows, {"id": name, "text": f"{PROSE} {name}"}])
        )
    inputs = artifacts(code=tmp_path / "code.jsonl", notes=tmp_path / "notes.jsonl")
    sources = {name: {"from": str(artifact.path)} for name, artifact in inputs.items()}
    sources["code"]["filters"] = {"min_stop_words": 0}  # type: ignore[assignment]
    config = CorpusConfig.model_validate({"sources": sources, "heldout": 0, "workers": 2})
    metrics = run(config, inputs, tmp_path / "out")["sources"]
    assert (metrics["code"]["kept"], metrics["code"]["dropped"]) == (4, {})
    assert (metrics["notes"]["kept"], metrics["notes"]["dropped"]) == (1, {"few function words": 3})
    report = (tmp_path / "out/report.html").read_text()
    assert "filters of code" in report
    assert "min_stop_words = 0, max_symbols = 0.1" in report
    assert "filters of notes" not in report


def test_the_thresholds_are_keys() -> None:
    off = {
        "min_letter_words": 0,
        "min_stop_words": 0,
        "max_symbols": 1,
        "max_repeated_lines": 1,
        "max_repeated_ngrams": 1,
    }
    for text in ("12.5 3.4 (0.7) 8 9 10 " * 20, PROSE + " ■◆▪" * 60, f"{PROSE} " * 4):
        assert decide(text, filters=off) == "kept"
    assert decide("404 Not Found. " + "nginx " * 20, filters={"error_pages": False}) == "kept"


@pytest.mark.parametrize(
    "page",
    [
        "404 Not Found\nThe requested URL /g.html was not found on this server. Apache at example.org",
        "Access Denied\nYou don't have permission to access this server. Reference #18.2d351ab8.1557333295",
        "Please enable JavaScript to view this page. The viewer needs a browser with JavaScript enabled.",
        "503 Service Unavailable. No server is available to handle this request. Please try again.",
        "Checking your browser before accessing example.org. This process is automatic and takes a moment.",
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt.",
        "Please verify you are a human to continue. The page will be shown after the check.",
        "Error 404\nSomething went wrong. Go back to the home page, or tell us what you were looking for.",
        "HTTP 500 Error.\nThe server could not complete your request. Please try again after some time.",
        "403 Forbidden\nnginx is the server of this site, and the site has no more to say to you here.",
    ],
)  # fmt: skip
def test_error_pages(page: str) -> None:
    assert decide(page, min_characters=0) == "error page"
    # A long text that quotes an error is no error page.
    assert (
        decide(f"{PROSE} ".join(str(n) for n in range(12)) + page, filters={"max_repeated_ngrams": 1})
        == "kept"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Of 404 patients, 12 were not found later; access to care was denied to none, and 503 had an event.",
        "Robots assist in surgery: a human verified each step, and the session expired after half an hour.",
        "The site of the lesion was not found in 4 cases, and access was denied by the patient himself.",
        "A total of 400 errors were found in the prescriptions of the two wards, most of them in the dose.",
        "Of 500 error reports, 30 were about insulin; the 404 errors of the night shift were about sedation.",
        "There were 403 unauthorized absences of patients; 410 gone for less than a day were not counted.",
    ],
)
def test_prose_about_errors_stays(text: str) -> None:
    assert decide(text, min_characters=0) == "kept"


@pytest.mark.shared
def test_real_abstracts_are_kept(shared: Path) -> None:
    reasons = [
        decide(" ".join(section.text for section in document.sections), {"language": "en"}, min_characters=0)
        for document in read(shared / "data/pubmed-medline-xml/pubmedsample18n0001.xml.gz")
        if any(section.text for section in document.sections)
    ]
    assert reasons.count("kept") == len(reasons)


@given(st.text(max_size=400))
def test_statistics_of_any_text(text: str) -> None:
    statistics = text_statistics(text)
    shares = (
        statistics.letter_words,
        statistics.stop_words,
        statistics.distinct_words,
        statistics.symbols,
        statistics.repeated_lines,
        statistics.repeated_ngrams,
    )
    assert all(0 <= share <= 1 for share in shares)
    assert 0 <= quality_score(text, statistics) <= 1


@given(st.lists(st.sampled_from("abcd"), max_size=80))
def test_repeated_ngrams_are_those_of_a_set(words: list[str]) -> None:
    grams = [tuple(words[at : at + 8]) for at in range(len(words) - 7)]
    expected = (len(grams) - len(set(grams))) / len(grams) if len(words) >= 16 else 0
    assert text_statistics(" ".join(words)).repeated_ngrams == pytest.approx(expected)


def test_the_stated_language_goes_before_that_of_the_text() -> None:
    assert decide(PROSE, {"language": "fr"}) == "another language"
    assert decide(GERMAN, {"language": "eng"}, filters={"min_stop_words": 0}) == "kept"
    assert decide(GERMAN) == "another language"
    assert decide(GERMAN, {"language": "und"}) == "another language"
    assert decide(GERMAN, languages=["de"]) == "kept"
    assert decide(GERMAN, languages=[]) == "kept"
    assert decide(PROSE) == "kept"


@pytest.mark.parametrize(
    "text",
    [
        "Kurz und knapp.",
        "5.4 ± 1.2 mmol/l (95% CI 4.9–5.9), p < 0.001; HbA1c 7.1 %, n = 120, OR 1.7 [1.1-2.3] " * 3,
        "E = mc²; ∑ xᵢ ≤ ∞; α, β, γ → δ " * 20,
        "C20H25N3O, (2S)-N-methyl-2-amino-3-phenylpropan, 4-(2-hydroxyethyl)piperazin-1-yl " * 2,
        "",
    ],
)
def test_short_texts_and_formulas_have_no_language(text: str) -> None:
    assert detect_language(text) in (None, "en")


@given(st.text(st.characters(), max_size=300))
def test_language_detection_takes_any_text(text: str) -> None:
    detect_language(text * 3)


def test_languages_of_texts() -> None:
    assert detect_language(PROSE) == "en"
    assert detect_language(GERMAN) == "de"
    assert detect_language(f"\x00\x07\ufdd0\U0010ffff{GERMAN}\ud800") == "de"


def test_licences_of_documents_and_sources() -> None:
    stated = {"meta": {"licence": "http://creativecommons.org/licenses/by-nc/4.0/"}}
    assert decide(PROSE, stated) == "kept"
    assert decide(PROSE, stated, licences="commercial") == "its licence is not allowed"
    assert decide(PROSE, stated, licences=["CC BY-NC"]) == "kept"
    assert decide(PROSE, licences="commercial") == "without a known licence"
    assert decide(PROSE, source={"licence": "CC BY 4.0"}, licences="commercial") == "kept"
    # The document's own statement goes before that of its source.
    assert (
        decide(PROSE, stated, {"licence": "CC BY 4.0"}, licences="commercial") == "its licence is not allowed"
    )
    assert decide(PROSE, {"meta": {"licence": "cc0"}}, licences="commercial") == "kept"
    assert decide(PROSE, {"meta": {"licence": 4}}, {"licence": "CC0"}, licences="commercial") == "kept"
    assert (
        decide(PROSE, {"meta": {"licence": "all rights reserved"}}, licences="commercial")
        == "without a known licence"
    )
    assert process(PROSE, stated)[0].row_fields["licence"] == "CC-BY-NC-4.0"
    with pytest.raises(ValidationError, match="no known licence 'my own'"):
        decide(PROSE, licences=["my own"])


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"meta": {"date": "2023-08-31"}}, "kept"),
        ({"meta": {"date": "2023-08"}}, "kept"),
        ({"meta": {"date": "2023-09"}}, "later than the cut-off"),
        ({"meta": {"date": "2023-09-01"}, "year": 2020}, "later than the cut-off"),
        ({"year": 2022}, "kept"),
        ({"year": 2024}, "later than the cut-off"),
        ({"year": 2023}, "perhaps later than the cut-off: its date is not precise enough"),
        ({"meta": {"date": "soon"}, "year": 2022}, "kept"),
        ({"meta": {"date": None}}, "without a date, but there is a cut-off"),
        ({}, "without a date, but there is a cut-off"),
    ],
)
def test_the_cutoff(document: dict[str, Any], reason: str) -> None:
    assert decide(PROSE, document, until="2023-08") == reason
    assert decide(PROSE, document) == "kept"


def test_a_source_dates_its_documents() -> None:
    assert decide(PROSE, source={"date": "2023-06-20"}, until="2023-08") == "kept"
    assert decide(PROSE, source={"date": "2023-12-01"}, until="2023-08") == "later than the cut-off"
    with pytest.raises(ValidationError, match="no date '2023-13'"):
        decide(PROSE, until="2023-13")


def test_sentences_of_other_scripts_end_without_a_blank() -> None:
    text = "患者 有 高 血压 和 糖尿病 很 多 年 了。" * 20
    assert quality_score(text, text_statistics(text)) > quality_score(
        text := text.replace("。", " "), text_statistics(text)
    )


def test_quality_scores() -> None:
    assert "quality" not in process(PROSE)[0].row_fields
    prose = process(PROSE, quality=True)[0].row_fields["quality"]
    off = {"min_letter_words": 0, "min_stop_words": 0, "max_repeated_ngrams": 1}
    table = process(PROSE[:90] + " 12.5 3.4 0.7" * 40, quality=True, filters=off)[0].row_fields["quality"]
    assert 0 < table < prose < 1
    assert process(PROSE, {"meta": {"quality": 0.25}}, quality=True)[0].row_fields["quality"] == 0.25
    for wrong in (7, -0.1, True, "good", float("nan")):
        with pytest.raises(SourceError, match=r"meta\.quality must be a number from 0 to 1"):
            process(PROSE, {"meta": {"quality": wrong}}, quality=True)


def test_the_corpus_states_its_licences_and_its_newest_date(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    metas = [
        {"licence": "CC BY 4.0", "date": "2021-03"},
        {"licence": "CC BY 4.0", "date": "2023"},
        {"licence": "CC BY-NC", "date": "2023-12-31"},
        {"licence": "?"},
    ]
    rows = [{"id": n, "text": f"{n}. {PROSE}", "meta": meta} for n, meta in enumerate(metas)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    inputs = artifacts(x=path)
    config = CorpusConfig.model_validate(
        {"sources": {"x": {"from": str(path)}}, "heldout": 0, "quality": True}
    )
    digests = []
    for workers in (1, 2):
        config = config.model_copy(update={"workers": workers})
        metrics = run(config, inputs, tmp_path / str(workers))
        digests.append((tmp_path / f"{workers}/train/x/000000.jsonl.zst").read_bytes())
    assert digests[0] == digests[1]
    size = len(rows[0]["text"])
    assert metrics["licences"] == {
        "CC-BY-4.0": {"documents": 2, "characters": 2 * size},
        "CC-BY-NC": {"documents": 1, "characters": size},
        "not stated": {"documents": 1, "characters": size},
    }
    assert (metrics["newest_date"], metrics["undated"]) == ("2023-12-31", 1)
    assert metrics["sources"]["x"]["licences"] == metrics["licences"]
    written = list(read_jsonl(tmp_path / "1/train/x/000000.jsonl.zst"))
    assert [row.get("licence") for row in written] == ["CC-BY-4.0", "CC-BY-4.0", "CC-BY-NC", None]
    assert [row.get("date") for row in written] == ["2021-03", "2023", "2023-12-31", None]
    assert all(0 < row["quality"] < 1 for row in written)
