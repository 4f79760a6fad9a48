"""SVG charts from matplotlib, in the colours and fonts of the page that shows them."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INK", "MUTED", "PAPER", "RULE", "SERIES", "matplotlib_style", "standalone_svg", "to_svg"]

# matplotlib accepts colours but no CSS variables: it draws with placeholder colours that no chart uses
# otherwise, which are then replaced by those of variables.css. The series are Okabe and Ito's palette,
# which readers with any colour vision can tell apart.
INK, MUTED, RULE, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(1, 7))
_VARIABLES = {
    INK: ("--ink", "#1c1c1c", "#e8e7e2"),
    MUTED: ("--muted", "#666", "#a3a29b"),
    RULE: ("--rule", "#ddd", "#3a3b38"),
    PAPER: ("--paper", "#fff", "#161716"),
    SERIES[0]: ("--series-1", "#0072b2", "#5db5ea"),
    SERIES[1]: ("--series-2", "#d55e00", "#ff9655"),
    SERIES[2]: ("--series-3", "#009e73", "#45cfa5"),
    SERIES[3]: ("--series-4", "#cc79a7", "#e79ac6"),
    SERIES[4]: ("--series-5", "#e69f00", "#f0bd4a"),
    SERIES[5]: ("--series-6", "#56b4e9", "#a9d8f5"),
}
"""Placeholder → variable, its value on a light page, and its value on a dark page."""
_REM_PER_INCH = 7.8
_ENLARGED = 1.7  # pixels per unit of a file
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "meditron",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.unicode_minus": True,
}


@contextmanager
def matplotlib_style() -> Iterator[None]:
    """Set matplotlib's settings while a chart is drawn, and restore them after it."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


def to_svg(figure: "Figure") -> str:
    """Return the figure's `<svg>` element, with the page's colours and font for the placeholders."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text and has fonts for every script, so a glyph that matplotlib lacks is no
        # problem.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # The ids of groups are not referenced, and would be duplicates on a page with several charts; the ids of
    # clips and markers are hashes.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    # The page sets the chart's width, up to the width at which the chart's text is as large as the page's.
    widest = _REM_PER_INCH * figure.get_figwidth()
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans, sans-serif)", text)
    # A style element would apply to the whole page; its properties are set on the svg element instead and are
    # inherited.
    text = re.sub(r"<defs>\s*<style[^>]*>\*{(.*?)}</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    style = f"max-width: {widest:.3g}rem; stroke-linejoin: round; stroke-linecap: butt"
    text = text.replace("<svg", f'<svg style="{style}"', 1)
    for placeholder, (variable, light, _) in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable}, {light})")
    return text


def standalone_svg(svg: str) -> str:
    """Return a chart as a file of its own, which follows the reader's light or dark setting."""
    light, dark = (
        " ".join(f"{variable}: {values[theme]};" for variable, *values in _VARIABLES.values())
        for theme in (0, 1)
    )
    sans = 'system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "Noto Sans", sans-serif'
    style = (
        f"<style>:root {{ --sans: {sans}; {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} "
        f"}} }} svg {{ font-family: var(--sans) }}</style>"
    )
    # A background rectangle is added, because the colours must not depend on the page that shows the file.
    background = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    tag, _, rest = svg.partition(">")
    # Without a size, the file would fill the whole page if it is shown as an image.
    width, height = (float(end) for end in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', tag)[0])
    tag += f' width="{_ENLARGED * width:.0f}" height="{_ENLARGED * height:.0f}"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tag}>\n{style}\n{background}{rest}\n'
