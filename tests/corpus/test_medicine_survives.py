"""Cleaning damages no medicine: word lists, generated notation, and the damage that others did."""

import bz2
import gzip
import json
import pickletools
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import InputError
from meditron.corpus.build import run
from meditron.corpus.clean import clean_text, render_document
from meditron.corpus.mojibake import repair_mojibake
from meditron.sources.document import Document, Section
from meditron.sources.medline_text import text_of
from meditron.sources.scripts import render_sup_and_sub_marks
from meditron.store.corpus import read_corpus
from meditron.store.fetch import fetch

from .test_build import artifacts, config


def assert_unchanged(text: str) -> None:
    """Assert that cleaning, rendering, and the text functions of the readers leave a text unchanged."""
    assert clean_text(text) == text
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if "\n" not in text:
        assert text_of(escaped.encode()) == text
    assert render_sup_and_sub_marks(text) == text
    assert render_document(Document("x:1", "x", text, (Section(text, text),)))[0].count(text) == 3


def assert_words_unchanged(words: Sequence[str]) -> None:
    """Assert that every word stays, in the surroundings that cleaners cut: brackets, angles, backslashes."""
    for start in range(0, len(words), 500):
        sentences = (
            f"{word} [{word}] (<{word}>) 5 mg/{word} \\{word}" for word in words[start : start + 500]
        )
        assert_unchanged("; ".join(sentences))


@pytest.mark.network
def test_the_names_of_drugs_survive() -> None:
    wheel = "pypi:drug-named-entity-recognition==2.0.9#drug_named_entity_recognition/"
    # The package keeps its names in a pickle. Its opcodes are listed here, and none of them is executed.
    data = bz2.decompress(fetch(f"{wheel}drug_ner_dictionary.pkl.bz2").read_bytes())
    strings = {argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    names = {" ".join(name.split()) for name in strings if name.strip()}
    # A few names of the package are broken by invisible characters and mistaken encodings, which are cleaned.
    sound = sorted(name for name in names if name.isprintable() and repair_mojibake(name) == name)
    assert len(names) - len(sound) < 30
    assert len(sound) > 100_000
    assert {"aspirin", "metformin"} <= set(sound)
    assert_words_unchanged(sound)
    cleaned = {clean_text(name) for name in names - set(sound)}
    assert {"6β-Naltrexol", "Oxford–AstraZeneca COVID-19 vaccine", "N-2′-Indolylnaltrexamine"} <= cleaned


@pytest.mark.network
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm, which fetches the word list, is not installed")
def test_the_words_of_a_medical_dictionary_survive(tmp_path: Path) -> None:
    command = ["npm", "pack", "--silent", "@cspell/dict-medicalterms@4.1.8"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if process.returncode:
        pytest.skip(f"npm cannot fetch the word list: {process.stderr.strip()[:200]}")
    with tarfile.open(tmp_path / process.stdout.split()[-1]) as archive:
        file = archive.extractfile("package/dict/medicalterms-en.txt.gz")
        assert file is not None
        words = gzip.decompress(file.read()).decode().split()
    assert len(words) > 90_000
    assert_words_unchanged(words)


NUMBER = st.from_regex(r"[0-9]{1,4}([.,·][0-9]{1,3})?", fullmatch=True)
UNITS = (
    "mg µg μg ng g kg ml mL l L IU U mmol mol/l mg/kg/d mmHg kPa °C Å Ω % ‰ mEq/L ×10⁹/L 10⁻³ cm² m³ Bq Gy "
    "mSv s⁻¹ kcal cm H₂O"
)
UNIT = st.sampled_from(UNITS.split())
SIGN = st.sampled_from(list("<>≤≥=±~≈≪≫≠−–+×÷/→↑↓"))
NAME = st.sampled_from(
    (
        *("[18F]FDG", "¹⁸F-FDG", "⁹⁹ᵐTc", "99mTc-MIBI", "[¹¹C]PiB", "I-131", "²²³Ra", "14C", "[3H]thymidine"),
        *("BRCA1", "TP53", "p.Val600Glu", "c.35delG", "HLA-B*27:05", "IL-1β", "TNF-α", "TGF-β1", "CD4⁺CD25⁺"),
        *("t(9;22)(q34;q11)", "Δ9-THC", "5-HT₂A", "α₁-antitrypsin", "β-lactam", "Na⁺/K⁺-ATPase", "Ca²⁺"),
        *(
            "amoxicillin",
            "naïve",
            "Sjögren",
            "Ménière",
            "E. coli O157:H7",
            "H₂O₂",
            "SpO₂",
            "V̇O₂max",
            "p<.001",
        ),
        *(
            "\\noral",
            "\\alpha",
            "[95% CI 1.1-2.3]",
            "<5",
            ">10",
            "(+)-catechin",
            "x̄",
            "ŷ",
            "½",
            "¼",
            "™",
            "®",
            "†",
        ),
    )
)
INTERVAL = st.builds("{0} {1}{2}{3} [{4}–{5}]".format, NUMBER, SIGN, NUMBER, UNIT, NUMBER, NUMBER)
NOTATION = st.lists(NUMBER | UNIT | SIGN | NAME | INTERVAL, min_size=1, max_size=30).map(" ".join)


@given(NOTATION)
def test_numbers_units_inequalities_intervals_genes_and_isotopes_survive(text: str) -> None:
    assert_unchanged(text)


@given(st.lists(NOTATION, min_size=1, max_size=6).map("\n".join))
def test_lines_of_notation_survive(text: str) -> None:
    assert clean_text(text) == text


# What the cleaners of the original did to each text; here each is in the corpus as it was in the source.
DAMAGE = {
    "a line break before `o` took the letter with it": "Give the drug\\noral route first, \\noxygen next.",
    "spans between two inequalities vanished": "CRP <5 mg/l in 3 patients and >10 mg/l in 4.",
    "brackets vanished": "The odds ratio was 1.7 [95% CI 1.1-2.3] after [18F]FDG and [5 mg] of it.",
    "links took their text along": "See [the guideline](https://example.org/g) for doses [1](2).",
    "lines without letters were dropped": "Doses:\n2.5-5\n10 (20)\n≥ 0.5\nuntil day 7.",
    "headings lost their capitals": "COVID-19 IN THE ICU\nmRNA, HbA1c AND pH\nRISK IN NYHA III",
    "Tables 10 to 19 went with Table 1": "Table 1. Doses\n5 mg\nTable 10. Effects\n12\nTable 19. Risks\n0.5",
    "the text after the first figure was lost": "Before.\n[fig] Figure 1: Flow [/fig]\nThe text after it.",
    "references that failed vanished": "As shown [fig_ref] Figure 3: [/fig_ref] and [bib_ref] [/bib_ref].",
    "addresses were cut in one source only": "www.who.int and https://www.who.int/a?b=1#c are kept.",
    "bullets, pipes and asterisks were removed": "* a | b\n• 5 mg | 10 mg\n** p<.05; p*q\n+ more",
}


def test_the_damage_of_the_original_cleaners_is_not_done(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"id": name, "text": text}) for name, text in DAMAGE.items()))
    inputs = artifacts(rows=path)
    run(config(inputs, heldout=0, min_characters=0), inputs, tmp_path / "out")
    assert {document.id: document.text for document in read_corpus(tmp_path / "out", "train")} == DAMAGE


def test_a_row_without_a_text_is_an_error_and_not_an_empty_document(tmp_path: Path) -> None:
    # The original's cleaner read `content`, its scrapers wrote `text`: whole sources were empty, silently.
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "1", "content": "Aspirin."}) + "\n")
    inputs = artifacts(rows=path)
    with pytest.raises(InputError, match='no object with a "text"') as error:
        run(config(inputs), inputs, tmp_path / "out")
    assert error.value.hint == 'rename the key of the text to "text"; the keys: id, content'


def broken(text: str) -> str:
    """Read the UTF-8 of a text as Windows-1252, as browsers and editors do."""
    return "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in text.encode())


@pytest.mark.parametrize("sign", "≤≥±µμ°αβγδπσωéñüöèäß–—’“”…·→−™®½⁹⁻₂∼≈√∞")
def test_signs_of_a_mistaken_encoding_are_repaired(sign: str) -> None:
    assert clean_text(f"x {broken(sign)}y, a{broken(sign)} 5") == f"x {sign}y, a{sign} 5"


@pytest.mark.parametrize(
    "text",
    [
        "IRMÃ — e MAÇÃ—",
        "⟨Â²⟩ = 1",
        "CHÂTEAU, Île, à la",
        "Âge: 5",
        "«NÃO»",
        "Ï, Î, â",
        "Ã ",
        "Ã 5",
        "â€",
        "Â\u2019",
    ],
)
def test_text_that_may_be_right_is_not_repaired(text: str) -> None:
    assert repair_mojibake(text) == text


def test_a_mistake_made_many_times_is_repaired_in_linear_time() -> None:
    # `Ãƒ` is again `Ã`. Repaired pair by pair, in a pass over the text for each, this takes hours.
    assert repair_mojibake("Ã" + "ƒ" * 200_000 + "© Ãƒ© Ãƒ") == "é é Ã"


def test_nfkc_would_damage_what_nfc_keeps() -> None:
    assert_unchanged("10⁹ cells, x², CO₂, ½ tablet, 5 µg, Ⅳ, ™, ﬁbrosis, H₂O, ①")
    # Canonical equivalents are one character: the ohm and angstrom signs are the letters Ω and Å.
    assert clean_text("\u2126 \u212b e\u0301 A\u030a") == "Ω Å é Å"
