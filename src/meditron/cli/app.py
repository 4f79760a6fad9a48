"""The command: its verbs, and the flags that come before or after any of them."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

from cyclopts import App, Parameter

from meditron.cli.chat import chat
from meditron.cli.compare import compare
from meditron.cli.convert import convert
from meditron.cli.errors import guarded, open_closed_streams
from meditron.cli.evaluate import evaluate
from meditron.cli.generate import generate
from meditron.cli.inspect import inspect
from meditron.cli.options import GENERAL, OPTIONS, STDIN, default_text
from meditron.cli.parse import parse
from meditron.cli.quantize import quantize
from meditron.cli.run import run
from meditron.cli.status import status
from meditron.core.console import configure, substitute_unencodable
from meditron.core.disclaimer import ADVISORY
from meditron.version import __version__

__all__ = ["VERBS", "app", "main"]

app = App(
    name="meditron",
    help="The whole life of a medical language model: literature, corpus, training, evaluation, release.",
    help_epilogue=ADVISORY,
    help_format="plaintext",  # spares the import of a Markdown parser, a quarter of the time of --help
    version=__version__,
    group_parameters=OPTIONS,
    default_parameter=Parameter(negative=(), show_default=default_text),
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `guarded` tells of it, and the verb says how to go on
)
VERBS: tuple[Callable[..., int | None], ...] = (
    run,
    status,
    parse,
    inspect,
    generate,
    chat,
    convert,
    quantize,
    evaluate,
    compare,
)
for place, verb in enumerate(VERBS):
    app.command(verb, sort_key=place, help_format="markdown")  # a docstring with its example


@app.meta.default
def _top(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    quiet: Annotated[bool, Parameter(help="Say nothing but warnings on stderr.")] = False,
    debug: Annotated[
        bool, Parameter(help="Show the traceback of a failure. MEDITRON_DEBUG=1 does the same.")
    ] = False,
) -> int:
    configure(quiet=quiet)
    debug = debug or os.environ.get("MEDITRON_DEBUG", "") not in ("", "0")
    words = [STDIN if word == "-" else word for word in tokens]
    return guarded(lambda: app(words, exit_on_error=False, print_error=False), debug=debug)


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command with `tokens`, else with what it was started with, and end the process."""
    open_closed_streams()
    substitute_unencodable()
    sys.exit(guarded(lambda: app.meta(tokens, exit_on_error=False, print_error=False)))
