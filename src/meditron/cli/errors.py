"""Error reporting: one line and a hint on stderr, and a traceback only with `--debug`.

With `--json` a failed command also prints one JSON object with the error on stdout.

Exit codes: 0 done, 1 failed, 2 invalid usage, 130 interrupted, 141 stdout closed by its reader.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from cyclopts import CycloptsError, UnknownOptionError

from meditron.cli.options import json_was_printed, note_printed_json, print_json
from meditron.core.console import sanitize_terminal
from meditron.core.errors import (
    MeditronError,
    MissingExtra,
    RecipeError,
    StorageError,
    UsageError,
    is_out_of_memory,
    status_of,
)
from meditron.core.redaction import redact

__all__ = ["INTERRUPTED", "open_closed_streams", "run_guarded"]

INTERRUPTED = status_of(KeyboardInterrupt()).exit_code
BROKEN_PIPE = 128 + signal.SIGPIPE

EXTRAS = {
    "torch": "train",
    "httpx": "corpus",
    "isal": "corpus",
    "lxml": "corpus",
    "mwparserfromhell": "corpus",
    "ray": "ray",
    "gigatoken": "corpus",
    "numba": "corpus",
    "protego": "corpus",
    "pyarrow": "corpus",
    "pycld2": "corpus",
    "pypdfium2": "corpus",
    "resiliparse": "corpus",
    "huggingface_hub": "release",
    "model_signing": "signing",
    "OpenSSL": "signing",
    "cyclonedx": "bom",
    "xllamacpp": "llamacpp",
    "starlette": "serve",
    "uvicorn": "serve",
    "markdown_it": "serve",
    "nh3": "serve",
    "latex2mathml": "serve",
    "opentelemetry": "otlp",
}
"""Import name of a library → the extra that installs it."""

PEER_FLAGS = {
    "--limit": "--questions",
    "--num_fewshot": "--shots",
    "--num-fewshot": "--shots",
    "--tasks": "--task",
    "--batch_size": "--batch-tokens",
    "--batch-size": "--batch-tokens",
    "--output_path": "--out",
    "--output-path": "--out",
    "--bootstrap_iters": "--resamples",
    "--bootstrap-iters": "--resamples",
    "--model": "the first argument",
    "--model_args": "the first argument",
    "--model-args": "the first argument",
}
"""Flag of lm-eval → flag of `meditron evaluate` with the same meaning."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def open_closed_streams() -> None:
    """Open the null device for each closed standard stream; exit if stdout is closed.

    If a standard stream stayed closed, the next opened file would get its descriptor, and messages would be
    written into that file.
    """
    if sys.stdin is None:  # reads as empty, like </dev/null
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    stdout = sys.stdout
    if stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if stdout is None:
        _print_error("error: stdout is closed", "redirect it to a file, or to /dev/null")
        sys.exit(1)


def run_guarded(work: Callable[[], int | None], *, debug: bool = False, as_json: bool = False) -> int:
    """Call `work` and return its exit code; an error is reported on stderr, with a traceback if `debug`.

    With `as_json` the error is also printed on stdout as one JSON object, unless JSON was printed before it.
    """
    note_printed_json(printed=False)
    further: tuple[RecipeError, ...] = ()
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:
        return _close_broken_streams()
    except KeyboardInterrupt:
        message, hint, code, stage = "interrupted", None, INTERRUPTED, None
        _print_error(message)
    # This is the outermost function, so every exception is caught and becomes a readable line and an exit
    # code.
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, hint, code = explain_error(error)
        _print_error(f"error: {message}", hint)
        further = error.further_errors if isinstance(error, RecipeError) else ()
        for other in further:
            _print_error(f"error: {_one_line(other.message)}", other.hint)
        stage = getattr(error, "stage", None)
    else:
        return code or 0
    if as_json and not json_was_printed():
        record = {"message": message, "hint": hint, "stage": stage, "exit_code": code}
        others = [{"message": _one_line(other.message), "hint": other.hint} for other in further]
        _print_json_error({"error": record | {"further_errors": others}})
    return code


def explain_error(error: Exception) -> tuple[str, str | None, int]:
    """Return the message, the hint and the exit code for an error; an error of one rank names the rank."""
    message, hint, code = _explain(error)
    rank = getattr(error, "rank", None)
    return (message if rank is None else f"rank {rank}: {message}"), hint, code


def _explain(error: Exception) -> tuple[str, str | None, int]:
    code = status_of(error).exit_code
    match error:
        case MeditronError():
            return _one_line(error.message), error.hint, code
        case CycloptsError():
            verb = " ".join(["meditron", *(error.command_chain or ())])
            return _explain(UsageError(_one_line(str(error)), hint=_peer_hint(error) + f"{verb} --help"))
        case ModuleNotFoundError(name=str(name)) if (library := name.partition(".")[0]) in EXTRAS:
            return _explain(MissingExtra(library, EXTRAS[library]))
        case _ if is_out_of_memory(error):
            message = _one_line(str(error)) or "an allocation failed"
            return f"out of memory: {message}", "use fewer or shorter texts at once, or a smaller model", code
        case OSError(errno=int(number)) if number in _FULL:
            return _explain(
                StorageError(_system_error_text(error), hint="make room, or write elsewhere with --out")
            )
        case OSError(errno=int()):
            return _system_error_text(error), None, code
        case _:
            hint = "this is a bug in meditron; please report it with the traceback that --debug shows"
            return f"{type(error).__name__}: {_one_line(redact(str(error))) or 'no message'}", hint, code


def _peer_hint(error: CycloptsError) -> str:
    """Return a hint for a flag of lm-eval, whose names `evaluate` does not share; empty for other errors."""
    if not isinstance(error, UnknownOptionError) or "evaluate" not in (error.command_chain or ()):
        return ""
    flag = (error.token.keyword or error.token.value).partition("=")[0]
    return f"lm-eval's {flag} is {PEER_FLAGS[flag]} here; " if flag in PEER_FLAGS else ""


def _system_error_text(error: OSError) -> str:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{os.strerror(error.errno or 0).lower()}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print_error(line: str, hint: str | None = None) -> None:
    print(f"meditron: {sanitize_terminal(line)}", file=sys.stderr)  # noqa: T201
    if hint:
        print(f"hint: {sanitize_terminal(hint)}", file=sys.stderr)  # noqa: T201


def _print_json_error(value: dict[str, Any]) -> None:
    try:
        print_json(value)
        sys.stdout.flush()
    except OSError:  # stdout's disk is full or its reader is gone; stderr has the error
        _close_broken_streams()


def _close_broken_streams() -> int:
    """Redirect closed output streams to the null device; return the exit code of a process ended by SIGPIPE.

    The function is called if the reader of stdout (such as `head`) has closed the pipe. Without the
    redirection Python would flush the streams again at exit and print a traceback.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(null, stream.fileno())
    return BROKEN_PIPE
