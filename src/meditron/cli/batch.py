"""Many prompts from one file: a JSON line for each answer, written as soon as the answer is complete."""

import json
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from meditron.cli.options import STDIN, emit_line
from meditron.core.console import info, progress
from meditron.core.errors import InputError, MeditronError
from meditron.engine.base import Generation, Prompt
from meditron.store.files import atomic_write, refuse_overwrite, translate_read_errors, translate_write_errors

__all__ = ["answer_all"]

# Fields of the two kinds of output lines; a file with others is not ours to rewrite.
_ANSWER_FIELDS, _ERROR_FIELDS = {"id", "text", "tokens", "seconds", "stop"}, {"id", "error"}


def answer_all(source: str, out: Path | None, answer: Callable[[Prompt], Generation]) -> int:
    """Answer every line of `source` and return the number of failed lines.

    A line is `{"prompt": TEXT}` or `{"messages": […]}`. Its `id` is copied to the answer; without one the id
    is the line number. A line that fails, or repeats an id, gives a line with its error.

    Args:
        source: The file of prompts, or STDIN.
        out: The file that answers are appended to, None for stdout. Ids with an answer in it are skipped.
        answer: Generates the answer to a prompt.

    Raises:
        InputError: `out` is not a file of answers.
        UsageError: `out` is the same file as `source`.
    """
    if out is not None and source != STDIN:
        refuse_overwrite([out], [Path(source)])
    done = _answered_ids(out) if out is not None else frozenset[str]()
    seen: set[str] = set()
    failed = 0
    with ExitStack() as closing:
        if out is not None:
            closing.enter_context(translate_write_errors(out))
            file = closing.enter_context(out.open("a", encoding="utf-8"))
        bar = closing.enter_context(progress("generate", _line_count(source), "prompts", start=len(done)))
        for number, line in _lines(source):
            row = _answer(source, number, line, answer, done, seen)
            if row is None:
                continue
            text = json.dumps(row, ensure_ascii=False) + "\n"
            if out is None:
                emit_line(text)
                sys.stdout.flush()
            else:
                # Flushed line by line: a kill loses the answer in progress and no other.
                file.write(text.encode(errors="replace").decode())
                file.flush()
            failed += "error" in row
            bar.advance()
    if failed:
        info(f"{failed:,} prompts failed; their lines contain the errors")
    return failed


def _answer(
    source: str,
    number: int,
    line: bytes,
    answer: Callable[[Prompt], Generation],
    done: Set[str],
    seen: set[str],
) -> dict[str, Any] | None:
    """Return the output for one line, None if `done` has its id. Its id is added to `seen`."""
    name: Any = number
    try:
        row = _parse_row(source, number, line)
        name = row.get("id", number)
        key = _key(name)
        if key in seen:
            raise _line_error(source, number, f"the id {key} is on an earlier line too")
        seen.add(key)
        if key in done:
            return None
        generation = answer(_prompt(source, number, row))
    except MeditronError as error:
        return {"id": name, "error": error.message}
    return {
        "id": name,
        "text": generation.text,
        "tokens": generation.tokens,
        "seconds": round(generation.seconds, 3),
        "stop": generation.stop,
    }


def _parse_row(source: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _line_error(source, number, f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise _line_error(source, number, f"expected an object, got a {type(row).__name__}")
    try:
        # Python reads NaN and lone surrogates and cannot write them as JSON in UTF-8.
        json.dumps(row.get("id"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise _line_error(source, number, "the id cannot be written as JSON") from error
    return row


def _prompt(source: str, number: int, row: dict[str, Any]) -> Prompt:
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and messages is None:
        return prompt
    if prompt is None and isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return messages
    raise _line_error(source, number, 'expected {"prompt": TEXT} or {"messages": [{"role", "content"}, …]}')


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def _line_error(source: str, number: int, problem: str) -> InputError:
    return InputError("stdin" if source == STDIN else source, problem, place=f"line {number}")


def _lines(source: str) -> Iterator[tuple[int, bytes]]:
    with ExitStack() as closing:
        file = sys.stdin.buffer
        if source != STDIN:
            path = Path(source)
            closing.enter_context(translate_read_errors(path))
            file = closing.enter_context(path.open("rb"))
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _line_count(source: str) -> int | None:
    """Return the number of lines, None if they can be read only once."""
    if source == STDIN or not Path(source).is_file():
        return None
    return sum(1 for _ in _lines(source))


def _key(name: object) -> str:
    # Ids are compared as JSON: 1 and "1" differ, and an id may be a list.
    return json.dumps(name, sort_keys=True)


def _answered_ids(out: Path) -> frozenset[str]:
    """Return the ids that have an answer in `out`, and remove errors and an incomplete last line from it.

    Only a regular file is read and rewritten; a pipe or /dev/stdout is only appended to.
    """
    if not out.is_file():
        return frozenset()
    kept: dict[str, bytes] = {}
    with translate_read_errors(out):
        lines = out.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break  # cut off by a kill
            raise _not_answers(out, number) from error
        if not isinstance(row, dict) or set(row) not in (_ANSWER_FIELDS, _ERROR_FIELDS):
            raise _not_answers(out, number)
        if "text" in row:
            kept[_key(row["id"])] = line.rstrip(b"\r\n") + b"\n"
    if lines != list(kept.values()):
        with atomic_write(out.resolve()) as file:  # resolved: a link stays a link
            file.writelines(kept.values())
    return frozenset(kept)


def _not_answers(out: Path, number: int) -> InputError:
    return InputError(
        out,
        "not an answer of meditron generate --jsonl",
        place=f"line {number}",
        hint="choose another file with --out",
    )
