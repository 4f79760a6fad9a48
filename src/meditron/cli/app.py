"""The `meditron` command: its subcommands, and the options that all of them accept."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import getdoc
from typing import Annotated

from cyclopts import App, Parameter

from meditron.cli.chat import chat
from meditron.cli.compare import compare
from meditron.cli.convert import convert
from meditron.cli.doctor import doctor
from meditron.cli.errors import open_closed_streams, run_guarded
from meditron.cli.evaluate import evaluate
from meditron.cli.exchange import export_result, import_result
from meditron.cli.explain import explain
from meditron.cli.generate import generate
from meditron.cli.imatrix import imatrix
from meditron.cli.inspect import inspect
from meditron.cli.logs import LOGS
from meditron.cli.options import GENERAL, OPTIONS, STDIN, default_text, refuse_fractions
from meditron.cli.parse import parse
from meditron.cli.plan import plan
from meditron.cli.prompts import PROMPTS
from meditron.cli.pull import pull
from meditron.cli.push import push
from meditron.cli.quantize import quantize
from meditron.cli.review import REVIEW_COMMANDS
from meditron.cli.run import run
from meditron.cli.serve import serve
from meditron.cli.split import join, split
from meditron.cli.status import status
from meditron.cli.verify import sign, verify
from meditron.core.console import configure, substitute_unencodable
from meditron.core.disclaimer import DISCLAIMER
from meditron.version import __version__

__all__ = ["COMMANDS", "GROUPS", "app", "command_name", "help_text", "main"]

COMMANDS: tuple[Callable[..., int | None], ...] = (
    run,
    status,
    plan,
    parse,
    inspect,
    generate,
    chat,
    serve,
    convert,
    quantize,
    imatrix,
    split,
    join,
    verify,
    sign,
    evaluate,
    compare,
    explain,
    export_result,
    import_result,
    pull,
    push,
    doctor,
)

GROUPS: Mapping[str, tuple[str, Mapping[str, Callable[..., int | None]]]] = {
    "prompts": ("Versions, labels and scores of stored prompts.", PROMPTS),
    "logs": ("The request log and the audit log of the server.", LOGS),
    "review": ("Compare models in blinded reviews by people.", REVIEW_COMMANDS),
}
"""Name of a group of commands → its help, and its commands by name."""


def help_text(command: Callable[..., object]) -> str:
    """Return a command's docstring as help text: each paragraph on one line, examples unchanged."""
    paragraphs = str(getdoc(command)).replace("`", "").split("\n\n")
    return "\n\n".join(text if text.startswith(" ") else re.sub(r"\s*\n", " ", text) for text in paragraphs)


def command_name(command: Callable[..., object]) -> str:
    """Return the name of a command: its function's, without `_result`, because `import` is a keyword."""
    return command.__name__.removesuffix("_result")


def _add_commands(parent: App, commands: Mapping[str, Callable[..., int | None]]) -> None:
    for flag in ("--help", "--version"):
        parent[flag].group = GENERAL
    for place, (name, function) in enumerate(commands.items()):
        parent.command(function, name=name, sort_key=place, help=help_text(function))


_PARAMETER = Parameter(negative=(), show_default=default_text)
app = App(
    name="meditron",
    help="Build a medical language model: corpus, training, evaluation, release.\n\n"
    "For example:\n\n    meditron run recipes/quickstart.toml",
    help_epilogue=DISCLAIMER,
    help_format="plaintext",  # other formats import a Markdown parser, a quarter of the time of --help
    version=__version__,
    group_parameters=OPTIONS,
    config=refuse_fractions,
    default_parameter=_PARAMETER,
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `run_guarded` reports it, and `run` says how to continue
)
_add_commands(app, {command_name(function): function for function in COMMANDS})
for order, (group, (summary, functions)) in enumerate(GROUPS.items(), start=len(COMMANDS)):
    group_app = App(
        name=group, help=summary, sort_key=order, group_parameters=OPTIONS, default_parameter=_PARAMETER
    )
    _add_commands(group_app, functions)
    app.command(group_app)


@app.meta.default
def _run_command_line(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    quiet: Annotated[bool, Parameter(group=GENERAL, help="Print no progress, only warnings.")] = False,
    debug: Annotated[
        bool, Parameter(group=GENERAL, help="Show the traceback of an error (also MEDITRON_DEBUG=1).")
    ] = False,
) -> int:
    configure(quiet=quiet)
    debug = debug or os.environ.get("MEDITRON_DEBUG", "") not in ("", "0")
    words = [STDIN if word == "-" else word for word in tokens]
    as_json = "--json" in tokens
    return run_guarded(
        lambda: app(words, exit_on_error=False, print_error=False), debug=debug, as_json=as_json
    )


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command with the arguments `tokens`, by default those of the process, and exit the process."""
    open_closed_streams()
    substitute_unencodable()
    sys.exit(run_guarded(lambda: app.meta(tokens, exit_on_error=False, print_error=False)))
