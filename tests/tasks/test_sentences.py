"""Sentences: nothing is lost, and what looks like an end and is none does not cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.tasks.sentences import split_sentences

WORDS = [
    "We saw",
    "vs.",
    "et al.",
    "i.e.",
    "J.",
    "p = .05",
    "1.2-3.4",
    "(95% CI 0.5)",
    "A",
    "mRNA",
    "é",
    "12",
]
SIGNS = [".", ". ", "!", "?", "...", '"', ")", "\n", "  ", "\u2009", "β-"]
PIECES = st.sampled_from(WORDS + SIGNS)


@given(st.lists(PIECES).map("".join) | st.text(max_size=60))
def test_joined_sentences_are_the_text_apart_from_white_space(text: str) -> None:
    result = split_sentences(text)
    assert " ".join(" ".join(result).split()) == " ".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in result)


@pytest.mark.parametrize(
    "sentence",
    [
        "The ratio was 1.7 (95% CI 1.2-3.4) and p = .05 in 12.5 % of them.",
        "We compared aspirin vs. Placebo and A vs. B.",
        "Smith et al. Found nothing, as J. A. Smith and R. Doe did.",
        "All outcomes, i.e. Death and stroke, e.g. MI, were seen.",
        "Growth of E. coli and of S. aureus (cf. Fig. 2, no. 7, approx. 3 of 10) was slow.",
        "It was given i.v. 3 times (P. aeruginosa; U.S. sites) by Dr. Roe.",
        "Was it so? perhaps, yes ... maybe.",
        "It ended (see above.) and went on.",
        "It was given twice daily (b.i.d.) état by état. à la carte. β was 3.",
        "Released under node.js v. 1.2.3 at example.org/a.b?c=D.E.",
    ],
)
def test_places_that_do_not_end_a_sentence(sentence: str) -> None:
    assert split_sentences(sentence) == [sentence]


@pytest.mark.parametrize(
    "parts",
    [
        ["We asked 12 patients.", "All came."],
        ["Was it so?", "It was!", '"Never."', "(Maybe.)", "[1] Then we left."],
        ["It fell to 3.5.", "12 patients died (p < .05).", "≥3 lived."],
        ["All had low vitamin D.", "None had hepatitis B.", "In group A.", "We stopped."],
        ["It was in the ED.", "So was NO.", "Of groups A and B.", "Then we stopped."],
        ["It is small.", "mRNA fell.", "pH rose.", "p53 stayed.", "α-Synuclein and β-cells too."],
        ["It took 30 sec.", "We used tubes, etc.", "The end."],
        ["Élan was lost.", "Über all."],
    ],
)
def test_places_that_end_a_sentence(parts: list[str]) -> None:
    assert split_sentences(" ".join(parts)) == parts
    assert split_sentences("\n ".join(parts)) == parts


@pytest.mark.parametrize(
    "text", ["." * 100_000, ".\n " * 50_000 + "a", '!"' * 50_000 + " a", ". " + " " * 100_000 + "é"]
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    # In quadratic time each of these would take an hour, and the suite's time limit ends it.
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
