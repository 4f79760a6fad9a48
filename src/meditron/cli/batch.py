"""Generation for many prompts in one file; each answer is written as a JSON line when it is complete."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from meditron.cli.options import STDIN, print_json_line
from meditron.core.console import info, progress
from meditron.core.errors import InputError, MeditronError, UsageError
from meditron.core.units import format_count
from meditron.engine.base import Generates, Generation, Prompt
from meditron.store.file_lock import exclusive_lock
from meditron.store.files import refuse_overwrite, translate_read_errors, translate_write_errors
from meditron.store.identity import short_hash
from meditron.store.resumable_jsonl import ResumableJsonl

__all__ = ["Origin", "answer_all_prompts"]

# Keys of the kinds of output lines. A file with other lines was not written by this command and is refused.
_ANSWER_FIELDS, _ERROR_FIELDS = {"id", "text", "tokens", "seconds", "stop"}, {"id", "error"}
_ORIGIN_FIELDS = {"model", "model_sha256", "settings", "prompt_sha256"}
_LINE_FIELDS = (_ANSWER_FIELDS, _ANSWER_FIELDS | _ORIGIN_FIELDS, _ERROR_FIELDS)
_LINE_START = b'{"id": '


@dataclass(frozen=True, slots=True)
class Origin:
    """The model and the settings of answers, recorded in each line of a file that can be resumed."""

    model: str
    """Name of the model, for readers; equal models may have several names."""
    model_sha256: str
    """Identity of the model."""
    settings: Mapping[str, Any]
    """Flag without its dashes → value; None for a value that only the loaded engine decides."""

    def resolve(self, engine: Generates) -> "Origin":
        """Return the origin with the values that the loaded engine decided."""
        decided = dict(engine.identity)
        values: dict[str, Any] = {"engine": decided["engine"]}
        # A server decides its number format and context, and does not report them. It may choose the model.
        if "dtype" in decided:
            values |= {"dtype": decided["dtype"], "context": engine.context}
        if "model" in decided:
            values["model"] = decided["model"]
        return replace(self, settings={**self.settings, **values})


@dataclass(frozen=True, slots=True)
class _Output:
    """An opened output and the answers that earlier runs wrote to it."""

    write_line: Callable[[str], None]
    answered: Mapping[str, str]
    """Key of an id that has an answer → hash of its prompt."""
    remove_errors: Callable[[], None] = lambda: None
    """Rewrites the output without the lines of errors and without an incomplete last line."""
    rows: tuple[dict[str, Any], ...] = ()
    """The answers' lines without their texts."""
    origin: Origin | None = None
    """What to record in each line; None for a stream, which cannot be resumed."""


def answer_all_prompts(
    source: str,
    out: Path | None,
    *,
    origin: Callable[[], Origin],
    open_engine: Callable[[], AbstractContextManager[Generates]],
    answer: Callable[[Generates, Prompt], Generation],
) -> int:
    """Answer the prompt in every line of `source`, write a JSON line for each, and count the failures.

    A line of `source` is `{"prompt": TEXT}` or `{"messages": […]}`. The line's `id` is copied to the answer;
    without an `id` the line number is used. If a line fails or repeats an id, the written line has an `error`
    instead.

    Args:
        source: The file of prompts, or STDIN.
        out: The file that answers are appended to, None for stdout. Prompts whose id has an answer in it are
            skipped. Each line records the model, the settings and a hash of the prompt.
        origin: Function that returns the model and the settings; called only if they are recorded.
        open_engine: Function that loads the model; not called if every prompt has an answer.
        answer: Function that generates the answer to a prompt.

    Returns:
        The number of lines that failed.

    Raises:
        InputError: `out` is not a file of answers.
        UsageError: `out` is the same file as `source`, or has answers of another model, of other settings or
            to another prompt.
    """
    if out is not None and source != STDIN:
        refuse_overwrite([out], [Path(source)])
    seen_ids: set[str] = set()
    failed = 0
    with ExitStack() as closing:
        output = _open_output(out, closing, origin, lambda answered: _check_file(source, out, answered))
        prompts = _line_count(source)
        if _all_answered(source, output.answered):
            output.remove_errors()
            closing.enter_context(progress("generate", prompts, "prompts", start=len(output.answered)))
            return 0
        engine = closing.enter_context(open_engine())
        if out is not None and output.origin is not None:
            origin_now = output.origin.resolve(engine)
            _check_origin(out, output.rows, origin_now)
            output = replace(output, origin=origin_now)
        output.remove_errors()
        bar = closing.enter_context(progress("generate", prompts, "prompts", start=len(output.answered)))
        for number, line in _numbered_lines(source):
            row = _answer_line(source, out, number, line, partial(answer, engine), output, seen_ids)
            if row is None:
                continue
            output.write_line(json.dumps(row, ensure_ascii=False) + "\n")
            failed += "error" in row
            bar.advance()
    if failed:
        info(f"{format_count(failed, 'prompts')} failed; see `error` in the written lines")
    return failed


def _open_output(
    out: Path | None,
    closing: ExitStack,
    origin: Callable[[], Origin],
    check_prompts: Callable[[Mapping[str, str]], None],
) -> _Output:
    """Open the output and check that the answers in it are of this model and of these settings and prompts.

    Only a regular file is read and rewritten; stdout and pipes are only written to.
    """
    if out is None:
        return _Output(_print_line, {})
    closing.enter_context(translate_write_errors(out))
    if out.exists() and not out.is_file():
        stream = closing.enter_context(out.open("ab"))
        return _Output(partial(_write_line, stream), {})
    # A link stays a link: its target is opened, because ResumableJsonl never writes through links.
    target = out.resolve()
    lock = exclusive_lock(target.with_name(f".{target.name}.lock"), f"waiting: another process writes {out}")
    closing.enter_context(lock)
    file = closing.enter_context(ResumableJsonl(target))
    answers, rows = _read_answers(out, file)
    now = origin()
    _check_origin(out, rows, now)
    answered = {_id_key(row["id"]): str(row["prompt_sha256"]) for row in rows}
    check_prompts(answered)
    file.append((), durable=False)  # a file that cannot be written is reported before the first answer

    def remove_errors() -> None:
        if list(answers.values()) != file.lines or file.incomplete_line:
            file.replace_content(line + b"\n" for line in answers.values())

    return _Output(
        lambda line: file.append([_encode_line(line)], durable=False),
        answered,
        remove_errors,
        tuple(rows),
        now,
    )


def _check_origin(out: Path, rows: Iterable[Mapping[str, Any]], now: Origin) -> None:
    """Raise UsageError if an answer is of another model or of other settings."""
    for row in rows:
        if not set(row) >= _ORIGIN_FIELDS:
            raise _other_answers_error(out, "its answers do not record their model and settings")
        if row["model_sha256"] != now.model_sha256:
            was, name = row["model"], now.model
            if was == name:  # the files of one folder were replaced
                was = f"{was} ({short_hash(str(row['model_sha256']))})"
                name = f"{name} ({short_hash(now.model_sha256)})"
            raise _other_answers_error(out, f"its answers are of another model: {was} → {name}")
        before = row["settings"]
        changed = [
            f"{name} {_setting_text(before.get(name))} → {_setting_text(value)}"
            for name, value in now.settings.items()
            if value is not None and before.get(name) != value
        ]
        if changed:
            raise _other_answers_error(out, f"its answers are of other settings: {', '.join(changed)}")


def _setting_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _other_answers_error(out: Path, problem: str) -> UsageError:
    return UsageError(f"{out}: {problem}", hint="choose another file with --out")


def _check_file(source: str, out: Path | None, answered: Mapping[str, str]) -> None:
    """Raise UsageError if a prompt was changed after it was answered; stdin is checked while it is read."""
    if out is None or not answered or not _is_file(source):
        return
    seen: set[str] = set()
    for number, line in _numbered_lines(source):
        with suppress(InputError):
            row = _parse_row(source, number, line)
            row_id = row.get("id", number)
            if _id_key(row_id) not in seen:  # a repeated id is an error of its own line
                _was_answered(out, row_id, row, answered)
            seen.add(_id_key(row_id))


def _was_answered(
    out: Path | None, row_id: object, row: Mapping[str, Any], answered: Mapping[str, str]
) -> bool:
    """Return whether a prompt has an answer; UsageError if the answer is to another prompt."""
    key = _id_key(row_id)
    if key not in answered:
        return False
    if answered[key] != _prompt_hash(row):
        assert out is not None  # noqa: S101  # stdout has no earlier answers
        raise _other_answers_error(out, f"the prompt with the id {key} was changed after it was answered")
    return True


def _all_answered(source: str, answered: Mapping[str, str]) -> bool:
    """Return True if every line of a file has an answer and none is an error."""
    if not answered or not _is_file(source):
        return False
    seen: set[str] = set()
    for number, line in _numbered_lines(source):
        try:
            key = _id_key(_parse_row(source, number, line).get("id", number))
        except InputError:
            return False
        if key not in answered or key in seen:
            return False
        seen.add(key)
    return True


def _prompt_hash(row: Mapping[str, Any]) -> str:
    # In ASCII, because a prompt may contain lone surrogates.
    content = json.dumps([row.get("prompt"), row.get("messages")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


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
    out: Path | None,
    number: int,
    line: bytes,
    answer: Callable[[Prompt], Generation],
    output: _Output,
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
    except MeditronError as error:
        return {"id": row_id, "error": error.message}
    seen_ids.add(key)
    if _was_answered(out, row_id, row, output.answered):
        return None
    try:
        prompt = _parse_prompt(source, number, row)
    except MeditronError as error:
        return {"id": row_id, "error": error.message}
    try:
        generation = answer(prompt)
    except MeditronError as error:
        return {"id": row_id, "error": _line_error(source, number, error.message).message}
    written = {
        "id": row_id,
        "text": generation.text,
        "tokens": generation.tokens,
        "seconds": round(generation.seconds, 3),
        "stop": generation.stop,
    }
    if output.origin is not None:
        written |= {
            "model": output.origin.model,
            "model_sha256": output.origin.model_sha256,
            "settings": dict(output.origin.settings),
            "prompt_sha256": _prompt_hash(row),
        }
    return written


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
    return sum(1 for _ in _numbered_lines(source)) if _is_file(source) else None


def _is_file(source: str) -> bool:
    return source != STDIN and Path(source).is_file()


def _id_key(row_id: object) -> str:
    # Ids are compared as JSON text, because 1 and "1" are different ids and an id may be a list.
    return json.dumps(row_id, sort_keys=True)


def _read_answers(out: Path, file: ResumableJsonl) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return id → line of the answers of earlier runs, without lines of errors, and their other fields.

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
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _not_answers_error(out, number) from error
        if not isinstance(row, dict) or set(row) not in _LINE_FIELDS:
            raise _not_answers_error(out, number)
        if not isinstance(row.get("settings", {}), dict):
            raise _not_answers_error(out, number)
        if "text" in row:
            answers[_id_key(row["id"])] = line.rstrip(b"\r")
            rows[_id_key(row["id"])] = {name: value for name, value in row.items() if name != "text"}
    return answers, list(rows.values())


def _not_answers_error(out: Path, number: int) -> InputError:
    return InputError(
        out,
        "not an answer of meditron generate --jsonl",
        place=f"line {number}",
        hint="choose another file with --out",
    )
