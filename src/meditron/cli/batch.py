"""Many prompts from one file: a JSON line for each answer, as soon as it is there."""

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
from meditron.store.files import atomic, refuse_overwrite, translate_read_errors, translate_write_errors

__all__ = ["answer_all"]

_ANSWER, _ERROR = {"id", "text", "tokens", "seconds", "stop"}, {"id", "error"}


def answer_all(source: str, out: Path | None, answer: Callable[[Prompt], Generation]) -> int:
    """Answer every line of `source` and say how many could not be.

    A line is `{"prompt": TEXT}` or `{"messages": […]}`; its `id` is kept, and is its number where there is
    none. Answers go to stdout, or to the end of `out`, whose own are not asked for again. A line that fails,
    or has the id of another, leaves its error instead. Raises InputError for an `out` that holds something
    else, UsageError for one that is `source` by another name.
    """
    if out is not None and source != STDIN:
        refuse_overwrite([out], [Path(source)])
    done = _answered(out) if out is not None else frozenset[str]()
    met: set[str] = set()
    failed = 0
    with ExitStack() as closing:
        if out is not None:
            closing.enter_context(translate_write_errors(out))
            file = closing.enter_context(out.open("a", encoding="utf-8"))
        bar = closing.enter_context(progress("generate", _count(source), "prompts", start=len(done)))
        for number, line in _lines(source):
            row = _answer(source, number, line, answer, done, met)
            if row is None:
                continue
            text = json.dumps(row, ensure_ascii=False) + "\n"
            if out is None:
                emit_line(text)
                sys.stdout.flush()
            else:
                file.write(text.encode(errors="replace").decode())
                file.flush()
            failed += "error" in row
            bar.advance()
    if failed:
        info(f"{failed:,} prompts could not be answered: their lines say why")
    return failed


def _answer(
    source: str,
    number: int,
    line: bytes,
    answer: Callable[[Prompt], Generation],
    done: Set[str],
    met: set[str],
) -> dict[str, Any] | None:
    """The line that answers a line; None where it was answered before. `met` grows by its id."""
    name: Any = number
    try:
        row = _row(source, number, line)
        name = row.get("id", number)
        key = _key(name)
        if key in met:
            raise _bad(source, number, f"a second line of the id {key}")
        met.add(key)
        if key in done:
            return None
        told = answer(_prompt(source, number, row))
    except MeditronError as error:
        return {"id": name, "error": error.message}
    return {
        "id": name,
        "text": told.text,
        "tokens": told.tokens,
        "seconds": round(told.seconds, 3),
        "stop": told.stop,
    }


def _row(source: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad(source, number, f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise _bad(source, number, f"a {type(row).__name__} where an object should be")
    try:
        json.dumps(row.get("id"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise _bad(source, number, "its id cannot be written down again") from error
    return row


def _prompt(source: str, number: int, row: dict[str, Any]) -> Prompt:
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and messages is None:
        return prompt
    if prompt is None and isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return messages
    raise _bad(source, number, 'holds neither {"prompt": TEXT} nor {"messages": [{"role", "content"}, …]}')


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def _bad(source: str, number: int, problem: str) -> InputError:
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


def _count(source: str) -> int | None:
    """How many lines there are, where they can be read twice."""
    if source == STDIN or not Path(source).is_file():
        return None
    return sum(1 for _ in _lines(source))


def _key(name: object) -> str:
    return json.dumps(name, sort_keys=True)


def _answered(out: Path) -> frozenset[str]:
    """Ids that `out` has answers for; errors, and a line that a kill cut off, are taken out of it.

    What is no regular file, as a pipe or /dev/stdout, is written to and nothing else.
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
                break
            raise _not_ours(out, number) from error
        if not isinstance(row, dict) or set(row) not in (_ANSWER, _ERROR):
            raise _not_ours(out, number)
        if "text" in row:
            kept[_key(row["id"])] = line.rstrip(b"\r\n") + b"\n"
    if lines != list(kept.values()):
        with atomic(out.resolve()) as file:
            file.writelines(kept.values())
    return frozenset(kept)


def _not_ours(out: Path, number: int) -> InputError:
    return InputError(
        out, "is no file of answers", place=f"line {number}", hint="name another file with --out"
    )
