"""Pages: everything escaped, nothing outside, whole or not there."""

import errno
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.disclaimer import DISCLAIMER
from meditron.core.errors import StorageError
from meditron.report import charts
from meditron.report.pages import Link, Page

VOID = {"meta", "br", "hr", "img", "link", "input"}
CHART = charts.bar_chart([("pubmed", 3.0)], "tokens")
plain = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40)


class Reading(HTMLParser):
    """Checks that tags close in order; keeps the texts, tags and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action", "data")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def whole(text: str = "a") -> Page:
    """A page with every kind of block, each holding `text`."""
    page = Page(text, text)
    for heading in (text, "b", "c"):
        page.section(heading)
    page.text(text)
    page.key_values({text: text})
    page.table([text, "n"], [[text, 1], [Link(text, "corpus/report.html"), 2.5]], text)
    page.figure(CHART, text)
    page.details(text, text)
    page.passage([(text, text, False), (text, "b", True)])
    return page


@settings(max_examples=15, deadline=None)
@given(plain)
def test_any_text_is_shown_as_text(text: str) -> None:
    hostile = f"{text}<script>alert('{text}')</script>\"&amp;{{{{ 7 * 7 }}}}"
    read = Reading(whole(hostile).render())
    assert "script" not in read.tags
    cells = [data for data in read.texts if hostile.strip() in data]
    assert len(cells) >= 11  # title twice, subtitle, navigation, heading, text, fact, table, details, passage


def test_nothing_outside_is_referred_to() -> None:
    page = whole().render()
    read = Reading(page)
    assert read.addresses
    assert all(address.startswith(("#", "corpus/")) for address in read.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(read.tags)
    assert not re.search(r"url\((?!['\"]?#)|@import", page)
    assert "default-src 'none'" in page


def test_every_page_has_the_advisory_in_its_foot() -> None:
    page = Page("empty").render()
    assert DISCLAIMER in page[page.index("<footer>") :]


def test_pages_are_for_phones_and_for_dark_rooms() -> None:
    page = whole().render()
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert page.count('class="wide"') == 2  # the table and the figure scroll on their own


def test_columns_of_figures_stand_flush_right() -> None:
    page = Page("t")
    page.table(["name", "n", "interval"], [["a", "1,234", "1.0 … 2.5"], ["b", 5, ""]])
    marks = re.findall(r"<t[hd][ >][^>]*>?", page.render())
    assert [("figure" in mark) for mark in marks] == [False, True, True] * 3


def test_a_passage_is_its_pieces_in_the_colours_of_who_speaks() -> None:
    page = Page("t")
    page.passage([("\nWhich section?\n", "user", False), ("  methods", "assistant", True)])
    page.passage([("results", "assistant", False)])
    shown = page.render()
    text = "".join(Reading(shown).texts)
    assert "\nWhich section?\n  methods" in text
    assert re.findall(r'<(span|strong) class="speaker-(\d)" title="(\w+)"', shown) == [
        ("span", "1", "user"),
        ("strong", "2", "assistant"),
        ("span", "2", "assistant"),
    ]


@pytest.mark.parametrize(
    "href", ["https://a.org", "//a.org", "javascript:alert(1)", "/etc/passwd", "\\\\a", " data:x"]
)
def test_a_link_leads_nowhere_else(href: str) -> None:
    with pytest.raises(ValueError, match="not relative"):
        Link("x", href)


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Page("t").table(["a", "b"], [["1", "2", "3"]])


def test_writing_replaces_a_page_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    Page("first").write(path)
    Page("second").write(path)
    assert "second" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_title_that_is_not_utf8_is_written(tmp_path: Path) -> None:
    """A run is named after its recipe, and a file's name is any bytes."""
    Page(os.fsdecode(b"\xff.toml")).write(tmp_path / "report.html")
    assert "<title>?.toml" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_full_disk_is_a_storage_error_and_the_old_page_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    Page("first").write(path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"report\.html: No space left"):
        Page("second").write(path)
    assert "first" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        Page("x").write(tmp_path / "file" / "report.html")


def test_folded_blocks_are_inside_their_fold() -> None:
    page = Page("t")
    with page.folded("All <differences>"):
        page.table(["a"], [["inside"]])
    page.text("outside")
    shown = page.render()
    fold = shown[shown.index('<details class="fold">') : shown.index("</details>")]
    assert "All &lt;differences&gt;" in fold
    assert "inside" in fold
    assert "outside" not in fold


def test_a_figure_has_links_to_its_files() -> None:
    page = Page("t")
    page.figure(CHART, "Shares", [Link("SVG", "figures/shares.svg")])
    assert '<a href="figures/shares.svg">SVG</a></figcaption>' in page.render().replace("\n", "")


def test_what_is_to_be_copied_keeps_its_lines_and_is_escaped() -> None:
    page = Page("Code")
    page.code('print("<b>")\nprint(2)', "python")
    assert (
        '<pre><code class="language-python">print(&#34;&lt;b&gt;&#34;)\nprint(2)</code></pre>'
        in page.render()
    )


def test_an_interval_stands_apart_from_its_figure() -> None:
    page = Page("Table")
    page.table(("model", "accuracy"), [("base", "27.3 % [23.8, 30.8]"), ("none", "")])
    assert '<td class="figure">27.3 % <span class="ends">[23.8, 30.8]</span></td>' in page.render()
