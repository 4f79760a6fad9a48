"""Rendering of answers: Markdown and formulas to HTML that runs nothing and loads nothing.

An answer is untrusted text: a model repeats what its training data and the question contain. Raw HTML and
images are off in the parser, and the result passes an allow-list all the same, because neither the parser nor
the converter of formulas was written as a filter.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

__all__ = ["render_markdown"]

_MAX_TEXT = 200_000  # characters; longer texts are shown without formatting
_MAX_FORMULA = 2_000  # characters
_MAX_LINES = 50  # of a formula
_CLOSING = {"$$": "$$", "\\[": "\\]"}
# `$5 and $10` is no formula: as in pandoc, no blank after the first dollar or before the last one, and no
# digit after it. All repetitions are bounded, so that many openings do not take quadratic time.
_INLINE_FORMULA = re.compile(
    rf"\$\$(?P<double>[^$]{{1,{_MAX_FORMULA}}}?)\$\$"
    rf"|\$(?=[^\s$])(?P<dollar>(?:[^$\\\n]|\\.){{1,{_MAX_FORMULA}}}?)(?<!\s)\$(?!\d)"
    rf"|\\\((?P<round>[\s\S]{{1,{_MAX_FORMULA}}}?)\\\)"
    rf"|\\\[(?P<square>[\s\S]{{1,{_MAX_FORMULA}}}?)\\\]"
)
# A macro can double its own text until the memory is full.
_MACRO = re.compile(r"\\(?:def|gdef|edef|xdef|let|(?:re|provide)?newcommand|DeclareMathOperator)\b")
_UNKNOWN_COMMAND = re.compile(r"<m[io][^>]*>\\[A-Za-z]")

_HTML = frozenset(
    """
    a b blockquote br code dd del div dl dt em h3 h4 h5 h6 hr li ol p pre s strong sub sup table tbody td th
    thead tr ul
    """.split()  # noqa: SIM905
)
_MATHML = frozenset(
    """
    math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow mspace msqrt
    mstyle msub msubsup msup mtable mtd mtext mtr munder munderover
    """.split()  # noqa: SIM905
)
_ATTRIBUTES: dict[str, set[str]] = {
    "a": {"href", "title"},
    "ol": {"start"},
    "pre": {"tabindex"},
    "div": {"tabindex"},
    "math": {"display"},
    "mi": {"mathvariant"},
    "menclose": {"notation"},
    "mfrac": {"linethickness"},
    "mo": {
        "accent",
        "fence",
        "form",
        "largeop",
        "maxsize",
        "minsize",
        "movablelimits",
        "separator",
        "stretchy",
    },
    "mover": {"accent"},
    "munder": {"accentunder"},
    "mspace": {"width"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mtd": {"columnalign"},
    "mtable": {"displaystyle"},
}
_CLASSES = {"code": {"formula"}, "div": {"wide"}, "th": {"right", "center"}, "td": {"right", "center"}}


def render_markdown(text: str) -> str:
    r"""Return the HTML of an answer.

    Formulas between `$…$`, `$$…$$`, `\(…\)` and `\[…\]` become MathML; one that cannot be converted is shown
    as its source. Links open a new page and send no referrer.
    """
    if len(text) > _MAX_TEXT:
        return f'<pre tabindex="0">{escape(text)}</pre>'
    return nh3.clean(
        _parser().render(text),
        tags=set(_HTML | _MATHML),
        clean_content_tags={"script", "style", "annotation", "annotation-xml"},
        attributes=_ATTRIBUTES,
        allowed_classes=_CLASSES,
        set_tag_attribute_values={"a": {"target": "_blank"}},
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer",
        strip_comments=True,
    )


class _Parser(MarkdownIt):
    """Markdown whose links lead to web addresses only."""

    def validateLink(self, url: str) -> bool:  # noqa: N802
        """Return whether an address may be a link."""
        return url.lower().startswith(("http://", "https://"))


@cache
def _parser() -> MarkdownIt:
    parser = _Parser("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.disable(["image", "html_block", "html_inline"])
    parser.inline.ruler.before("escape", "formula", _read_inline_formula)
    parser.block.ruler.before(
        "fence", "formula", _read_block_formula, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    for name, rule in _RENDER_RULES.items():
        parser.add_render_rule(name, rule)
    return parser


def _read_inline_formula(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\" or not (found := _INLINE_FORMULA.match(state.src, state.pos)):
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content = next(group for group in found.groups() if group is not None)
        token.block = found.lastgroup in ("double", "square")
    state.pos = found.end()
    return True


def _read_block_formula(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Read a formula that begins a line. Lines of it may begin with `=` or `-`, which Markdown would read."""
    if state.is_code_block(start) or (closing := _CLOSING.get(_line(state, start)[:2])) is None:
        return False
    content = []
    for line in range(start, min(end, start + _MAX_LINES)):
        if line > start and (state.sCount[line] < state.blkIndent or not _line(state, line).strip()):
            return False
        text = _line(state, line)[2 if line == start else 0 :].rstrip()
        if text.endswith(closing):
            content.append(text.removesuffix(closing))
            break
        if closing in text:
            return False
        content.append(text)
    else:
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.block, token.map = "\n".join(content), True, [start, line + 1]
    state.line = line + 1
    return True


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]


def _render_formula(_self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:  # noqa: ANN401
    token = tokens[index]
    converted = _convert_formula(token.content, "block" if token.block else "inline")
    return converted or f'<code class="formula">{escape(token.content.strip())}</code>'


def _convert_formula(formula: str, display: str) -> str | None:
    """Return the MathML of a formula, or None if it has commands that the converter does not know."""
    # The library reads a table of 200 kB when it is imported.
    from latex2mathml.converter import convert

    if len(formula) > _MAX_FORMULA or _MACRO.search(formula) or not formula.strip():
        return None
    for name in ("aligned", "gathered"):  # the same tables under a name that the library knows
        formula = re.sub(rf"\\(begin|end){{{name}}}", r"\\\1{split}", formula)
    # The library writes `<` into its XML as it is.
    formula = formula.replace("<", r"\lt ").replace(">", r"\gt ")
    try:
        mathml = str(convert(formula, display=display))
    except Exception:  # the library's own errors, and IndexError or RecursionError for damaged formulas
        return None
    return None if _UNKNOWN_COMMAND.search(mathml) else mathml


def _render_heading(_self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:  # noqa: ANN401
    # The page's own headings have levels 1 and 2.
    token = tokens[index]
    level = min(int(token.tag[1]) + 2, 6)
    return f"<{'/' if token.nesting < 0 else ''}h{level}>"


def _render_code_block(_self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:  # noqa: ANN401
    # A block that scrolls sideways must be reachable by the keyboard.
    return f'<pre tabindex="0"><code>{escape(tokens[index].content)}</code></pre>\n'


def _open_table(*_: object) -> str:
    return '<div class="wide" tabindex="0"><table>\n'


def _close_table(*_: object) -> str:
    return "</table></div>\n"


def _render_cell(_self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:  # noqa: ANN401
    token = tokens[index]
    align = str(token.attrGet("style") or "").removeprefix("text-align:")
    return f'<{token.tag} class="{align}">' if align in ("right", "center") else f"<{token.tag}>"


_RENDER_RULES: dict[str, Callable[..., str]] = {
    "formula": _render_formula,
    "heading_open": _render_heading,
    "heading_close": _render_heading,
    "fence": _render_code_block,
    "code_block": _render_code_block,
    "table_open": _open_table,
    "table_close": _close_table,
    "th_open": _render_cell,
    "td_open": _render_cell,
}
