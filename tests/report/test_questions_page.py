"""The page of questions: its filters, its escaping, and that it needs no script."""

import re
from pathlib import Path

import pytest
from lxml import html

from meditron.report.pages import Filter, Page
from meditron.report.questions_page import MOST_QUESTIONS, BrowsedQuestion, ShownAnswer, write_questions_page

HOSTILE = "<script>alert(1)</script>&amp; {{ 7 }}"


def question(n: int, base: int | None, tuned: int | None, subject: str = "") -> BrowsedQuestion:
    return BrowsedQuestion(
        id=f"q{n}",
        text=f"Which drug {HOSTILE}?",
        context=f"Abstract {HOSTILE}" if n == 0 else "",
        options=("aspirin", f"metformin {HOSTILE}", "none"),
        gold=1,
        subject=subject,
        answers={
            "base": ShownAnswer(prediction=base, confidence=0.5),
            f"tuned {HOSTILE}": ShownAnswer(prediction=tuned, outputs=(f"I think {HOSTILE}",)),
        },
    )


QUESTIONS = [
    question(0, 1, None, "heart"),
    question(1, 0, 1, "heart"),
    question(2, None, 0, f"skin {HOSTILE}"),
    question(3, 1, 1),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "questions.html"
    write_questions_page(path, "drugs", QUESTIONS)
    return path.read_text(encoding="utf-8")


def visible(page: str, *chosen: str) -> set[str]:
    """Return the headings that the page's style rules leave when these buttons are chosen."""
    tree = html.fromstring(page)
    hidden = set()
    for button, shown in re.findall(
        r"\.questions:has\(#([\w-]+):checked\) \.question:not\(\.([\w-]+)\)", page
    ):
        if button in chosen:
            hidden |= {item for item in tree.xpath("//article") if shown not in item.get("class").split()}
    return {item.xpath("string(h3)")[:2] for item in tree.xpath("//article") if item not in hidden}


def button(page: str, group: str, text: str) -> str:
    tree = html.fromstring(page)
    [field] = [each for each in tree.xpath("//fieldset") if each.xpath("string(legend)").startswith(group)]
    [label] = [each for each in field.xpath("label") if each.text_content().strip().startswith(text)]
    return label.xpath("input/@id")[0]


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ([], {"q0", "q1", "q2", "q3"}),
        ([("base", "wrong")], {"q1"}),
        ([("base", "unparsed")], {"q2"}),
        ([("tuned", "right")], {"q1", "q3"}),
        ([("base", "right"), ("tuned", "unparsed")], {"q0"}),
        ([("subject", "heart")], {"q0", "q1"}),
        ([("subject", "heart"), ("base", "wrong")], {"q1"}),
        ([("subject", "no subject")], {"q3"}),
    ],
)
def test_filters_combine(page: str, choices: list[tuple[str, str]], shown: set[str]) -> None:
    assert visible(page, *(button(page, group, text) for group, text in choices)) == shown


def test_the_buttons_count_the_questions(page: str) -> None:
    labels = [label.text_content().strip() for label in html.fromstring(page).xpath("//label")]
    assert labels[:4] == ["all", "right (2)", "wrong (1)", "unparsed (1)"]


def test_texts_are_text_and_there_is_no_script(page: str) -> None:
    tree = html.fromstring(page)
    assert not tree.xpath("//script")
    assert not tree.xpath("//@*[starts-with(name(), 'on')]")
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") > 15
    assert "default-src 'none'" in page
    gold = tree.xpath("//article[1]//strong/text()")
    assert gold == [f"B. metformin {HOSTILE}"]
    assert tree.xpath("//article[2]//li[1]/span[@class='chosen']/text()") == ["← base 50.0 %"]


def test_a_long_list_is_cut_and_says_so(tmp_path: Path) -> None:
    many = [question(n, 1, 1) for n in range(MOST_QUESTIONS + 1)]
    write_questions_page(tmp_path / "page.html", "drugs", many)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<article") == MOST_QUESTIONS
    assert f"The first 5,000 of {MOST_QUESTIONS + 1:,} questions" in text


def test_a_class_is_a_simple_name() -> None:
    with pytest.raises(ValueError, match="not the name of a class"):
        Page("t").questions([Filter(name="x", options={"all": "a}b{"})], [])
