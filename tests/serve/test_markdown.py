"""Rendering of answers: what Markdown and formulas become, and that nothing in them runs or loads."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import html as lxml_html

from meditron.serve.markdown import render_markdown

ELEMENTS = frozenset(
    """
    a b blockquote br code dd del div dl dt em h3 h4 h5 h6 hr li ol p pre s strong sub sup table tbody td th
    thead tr ul math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow
    mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover
    """.split()  # noqa: SIM905
)
ATTRIBUTES = frozenset(
    """
    href title target rel start tabindex display mathvariant notation linethickness accent fence form largeop
    maxsize minsize movablelimits separator stretchy accentunder width displaystyle scriptlevel columnalign
    class
    """.split()  # noqa: SIM905
)


def assert_harmless(text):
    """Parse the HTML with another parser: known elements and attributes, and web links only."""
    for element in lxml_html.fragment_fromstring(render_markdown(text), create_parent="section").iter():
        assert isinstance(element.tag, str), element  # no comment, no processing instruction
        assert element.tag in ELEMENTS | {"section"}
        assert set(element.attrib) <= ATTRIBUTES
        if element.tag == "a" and "href" in element.attrib:
            assert re.match("https?://", element.get("href"), re.IGNORECASE)
            assert element.get("rel") == "noopener noreferrer"


VECTORS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:x)",
    "[x](file:///etc/passwd)",
    "[x](//evil.example)",
    "[x](/logs)",
    "<javascript:alert(1)>",
    "[x]: javascript:alert(1)\n\n[x]",
    "![x](https://evil.example/pixel.png)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    '[x](https://a.b "onmouseover=alert(1)")',
    "[x](https://a.b\"onmouseover='alert(1))",
    "```<script>\nalert(1)</script>\n```",
    "```js onload=alert(1)\nx\n```",
    "| <img src=x onerror=alert(1)> |\n|---|\n| <script>x</script> |",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\text{<script>alert(1)</script>}$",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$\\style{position:fixed;top:0}{x}$",
    '$\\color{red" onclick="alert(1)}{x}$',
    "$$</math><script>alert(1)</script>$$",
    "\\[\n<annotation-xml encoding='text/html'><script>alert(1)</script></annotation-xml>\n\\]",
    "\\(\\unknown<img src=x onerror=alert(1)>\\)",
    "<details open ontoggle=alert(1)>",
    "<style>@import 'https://evil.example'</style>",
    "<base href='https://evil.example'><form action=x><input name=y>",
    "<a id=content>x</a><p class=hidden style=x>y",
)


@pytest.mark.parametrize("text", VECTORS)
def test_known_attacks_are_harmless(text):
    assert_harmless(text)
    assert_harmless(f"> 1. {text}\n\n*{text}*")


PIECES = [
    *VECTORS,
    *"$\\[](){}<>&\"'`*_|~#>-+=:/!\n\r\t \x00é",
    "$$",
    "\\(",
    "\\)",
    "\\[",
    "\\]",
    "\\frac",
    "https://a.b",
    "x",
]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=14).map("".join))
def test_no_mixture_runs_or_loads_anything(text):
    assert_harmless(text)


def test_markdown():
    assert render_markdown("# A\n\n**b** *c* `d` ~~e~~\n\n3. f") == (
        "<h3>A</h3><p><strong>b</strong> <em>c</em> <code>d</code> <s>e</s></p>\n"
        '<ol start="3">\n<li>f</li>\n</ol>\n'
    )
    assert '<pre tabindex="0"><code>a &lt; b\n</code></pre>' in render_markdown("```c\na < b\n```")
    assert '<td class="right">1</td>' in render_markdown("| a |\n|--:|\n| 1 |")
    assert render_markdown("[x](https://a.b)") == (
        '<p><a href="https://a.b" target="_blank" rel="noopener noreferrer">x</a></p>\n'
    )


@pytest.mark.parametrize(
    ("text", "mathml"),
    [
        ("$x^2$", "<msup><mi>x</mi><mn>2</mn></msup>"),
        ("\\(\\frac{a}{b}\\)", "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>"),
        ("$a<b$", "<mo>&lt;</mo>"),
        ("a $$x$$ b", '<math display="block">'),
        ("text\n\\[\na\n= b\n\\]\nmore", '<math display="block"><mrow><mi>a</mi><mo>=</mo><mi>b</mi>'),
        ("- item\n  $$\n  x\n  $$\n- item", '<math display="block"><mrow><mi>x</mi></mrow></math></li>'),
        ("$$\\begin{aligned}a&=b\\\\c&=d\\end{aligned}$$", '<mtd columnalign="right"><mi>c</mi></mtd>'),
    ],
)
def test_formulas_become_mathml(text, mathml):
    assert mathml in render_markdown(text)


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "US$ 5, US$ 6",
        "\\$x\\$",
        "`$x$`",
        "```\n$x$\n```",
        "$x",
        "\\(x",
        "\\[x",
        "$$\n\n$$",
    ],
)
def test_other_dollars_and_backslashes_are_text(text):
    assert "<math" not in render_markdown(text)


@pytest.mark.parametrize(
    "formula",
    [
        "\\ce{H2O}",
        "{",
        "\\left(",
        "\\begin{x}",
        "\\def\\a{\\a\\a}\\a",
        "\\newcommand{\\a}{b}\\a",
        "{" * 1500,
    ],
)
def test_a_formula_that_cannot_be_converted_is_shown_as_its_source(formula):
    rendered = render_markdown(f"${formula}$")
    assert lxml_html.fromstring(rendered).xpath("string(//code[@class='formula'])") == formula


@pytest.mark.parametrize(
    "text",
    [
        "\\(" * 8000,
        "$" * 16000,
        "$a " * 6000,
        "\\[\n" * 5000,
        "[" * 8000,
        "*a " * 6000,
        "> " * 4000,
        "`" * 9000,
    ],
)
def test_long_answers_are_rendered_in_a_moment(text):
    start = time.process_time()
    render_markdown(text)
    assert time.process_time() - start < 2


def test_a_very_long_text_is_not_parsed():
    assert render_markdown("<b>" * 100_000).startswith('<pre tabindex="0">&lt;b&gt;')
