"""Generation for many prompts in one file; each answer is written as a JSON line when it is complete."""

import json
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from meditron.cli.options import STDIN, print_json_line
from meditron.core.console import info, progress
from meditron.core.errors import InputError, MeditronError
from meditron.core.units import format_count
from meditron.engine.base import Generation, Prompt
from meditron.store.files import refuse_overwrite, translate_read_errors, translate_write_errors
from meditron.store.resumable_jsonl import ResumableJsonl

__all__ = ["answer_all_prompts"]

# Keys of the two kinds of output lines. A file with other lines was not written by this command and is
# refused.
_ANSWER_FIELDS, _ERROR_FIELDS = {"id", "text", "tokens", "seconds", "stop"}, {"id", "error"}
_LINE_START = b'{"id": '


def answer_all_prompts(source: str, out: Path | None, answer: Callable[[Prompt], Generation]) -> int:
    """Answer the prompt in every line of `source`, write a JSON line for each, and count the failures.

    A line of `source` is `{"prompt": TEXT}` or `{"messages": […]}`. The line's `id` is copied to the answer;
    without an `id` the line number is used. If a line fails or repeats an id, the written line has an `error`
    instead.

    Args:
        source: The file of prompts, or STDIN.
        out: The file that answers are appended to, None for stdout. Prompts whose id has an answer in it are
            skipped.
        answer: Function that generates the answer to a prompt.

    Returns:
        The number of lines that failed.

    Raises:
        InputError: `out` is not a file of answers.
        UsageError: `out` is the same file as `source`.
    """
    if out is not None and source != STDIN:
        refuse_overwrite([out], [Path(source)])
    seen_ids: set[str] = set()
    failed = 0
    with ExitStack() as closing:
        write_line, answered_ids = _open_output(out, closing)
        prompts, answered = _line_count(source), len(answered_ids)
        bar = closing.enter_context(progress("generate", prompts, "prompts", start=answered))
        for number, line in _numbered_lines(source):
            row = _answer_line(source, number, line, answer, answered_ids, seen_ids)
            if row is None:
                continue
            write_line(json.dumps(row, ensure_ascii=False) + "\n")
            failed += "error" in row
            bar.advance()
    if failed:
        info(f"{format_count(failed, 'prompts')} failed; see `error` in the written lines")
    return failed


def _open_output(out: Path | None, closing: ExitStack) -> tuple[Callable[[str], None], Set[str]]:
    """Open the output; return the function that writes a line to it, and the ids that have an answer in it.

    Only a regular file is read and rewritten; stdout and pipes are only written to.
    """
    if out is None:
        return _print_line, frozenset()
    closing.enter_context(translate_write_errors(out))
    if out.exists() and not out.is_file():
        stream = closing.enter_context(out.open("ab"))
        return partial(_write_line, stream), frozenset()
    # A link stays a link: its target is opened, because ResumableJsonl never writes through links.
    file = closing.enter_context(ResumableJsonl(out.resolve()))
    answers = _read_answers(out, file)
    if list(answers.values()) != file.lines or file.incomplete_line:
        file.replace_content(line + b"\n" for line in answers.values())
    file.append((), durable=False)  # a file that cannot be written is reported before the first answer
    return lambda line: file.append([_encode_line(line)], durable=False), answers.keys()


def _print_line(line: str) -> None:
    print_json_line(line)
    sys.stdout.flush()


def _write_line(stream: IO[bytes], line: str) -> None:
    stream.write(_encode_line(line))
    stream.flush()


def _encode_line(line: str) -> bytes:
    # A prompt's text may contain lone surrogates, which UTF-8 cannot encode.
    return line.encode(errors="replace")


def _answer_line(
    source: str,
    number: int,
    line: bytes,
    answer: Callable[[Prompt], Generation],
    answered_ids: Set[str],
    seen_ids: set[str],
) -> dict[str, Any] | None:
    """Return one line's output row and add its id to `seen_ids`; None if the line was answered before."""
    row_id: Any = number
    try:
        row = _parse_row(source, number, line)
        row_id = row.get("id", number)
        key = _id_key(row_id)
        if key in seen_ids:
            raise _line_error(source, number, f"the id {key} is on an earlier line too")
        seen_ids.add(key)
        if key in answered_ids:
            return None
        prompt = _parse_prompt(source, number, row)
    except MeditronError as error:
        return {"id": row_id, "error": error.message}
    try:
        generation = answer(prompt)
    except MeditronError as error:
        return {"id": row_id, "error": _line_error(source, number, error.message).message}
    return {
        "id": row_id,
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
        # Python's parser accepts NaN and lone surrogates, which valid JSON in UTF-8 cannot contain.
        json.dumps(row.get("id"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise _line_error(source, number, "the id cannot be written as JSON") from error
    return row


def _parse_prompt(source: str, number: int, row: dict[str, Any]) -> Prompt:
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


def _numbered_lines(source: str) -> Iterator[tuple[int, bytes]]:
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
    """Return the number of prompts; None if `source` is stdin or a pipe, which can be read only once."""
    if source == STDIN or not Path(source).is_file():
        return None
    return sum(1 for _ in _numbered_lines(source))


def _id_key(row_id: object) -> str:
    # Ids are compared as JSON text, because 1 and "1" are different ids and an id may be a list.
    return json.dumps(row_id, sort_keys=True)


def _read_answers(out: Path, file: ResumableJsonl) -> dict[str, bytes]:
    """Return id → line of the answers in an output file of earlier runs, without lines of errors.

    Raises:
        InputError: a line was not written by this command.
    """
    lines = list(file.lines)
    if file.incomplete_line:
        # A kill can leave the beginning of a line. A complete line without its newline, as an editor may
        # leave it, is kept.
        if not file.incomplete_line.startswith(_LINE_START[: len(file.incomplete_line)]):
            raise _not_answers_error(out, len(lines) + 1)
        with suppress(ValueError, RecursionError):
            json.loads(file.incomplete_line)
            lines.append(file.incomplete_line)
    answers: dict[str, bytes] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _not_answers_error(out, number) from error
        if not isinstance(row, dict) or set(row) not in (_ANSWER_FIELDS, _ERROR_FIELDS):
            raise _not_answers_error(out, number)
        if "text" in row:
            answers[_id_key(row["id"])] = line.rstrip(b"\r")
    return answers


def _not_answers_error(out: Path, number: int) -> InputError:
    return InputError(
        out,
        "not an answer of meditron generate --jsonl",
        place=f"line {number}",
        hint="choose another file with --out",
    )
