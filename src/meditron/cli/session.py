"""A conversation at the terminal or from a pipe: lines in, answers out, and the commands between them."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from meditron.cli.errors import explain
from meditron.cli.options import emit_line
from meditron.core.console import info, sanitize_terminal, warn
from meditron.core.errors import MeditronError, UsageError
from meditron.engine import Generation, Reply
from meditron.engine.conversation import Conversation
from meditron.store.files import translate_write_errors

__all__ = ["Session", "Settings"]

_NOTES = {
    "length": "(cut at {tokens} tokens: --max-tokens allows more)",
    "context": "(cut: the model's context is full)",
    "stopped": "(stopped)",
}


@dataclass
class Settings:
    """How answers are drawn."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


class Session:
    """Takes one line after the other; answers go to stdout, everything else to stderr."""

    def __init__(
        self, talk: Conversation, settings: Settings, *, interactive: bool, as_json: bool = False
    ) -> None:
        """`interactive`: somebody sits there, and Ctrl-C stops an answer, not the program."""
        self.failed = False
        """Whether a line could not be done."""
        self.ended = False
        """Whether a line said that this is all."""
        self._talk, self._settings = talk, settings
        self._interactive, self._json = interactive, as_json
        self._drawn = 0
        self._commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "help": (self._help, "", "this list"),
            "clear": (self._clear, "", "begin anew: forget what was said"),
            "system": (self._system, "TEXT", "tell the model this before everything; nothing to drop it"),
            "regen": (self._regenerate, "", "draw another answer to the last question"),
            "temp": (self._temperature, "X", "set the temperature; 0 takes the likeliest token always"),
            "save": (self._save, "FILE", 'append the conversation as a line {"messages": …}'),
            "quit": (self._quit, "", "end, as Ctrl-D does"),
        }

    def take(self, line: str) -> None:
        """Do what a line says; what fails is told, and the conversation goes on."""
        line = line.strip()
        try:
            if line.startswith("/"):
                self._obey(line[1:])
            elif line:
                self._answer(line)
        except MeditronError as error:
            self.failed = True
            message, hint, _ = explain(error)
            warn(f"{message} ({hint})" if hint else message)

    def _answer(self, question: str) -> None:
        before = self._talk.forgotten
        settings = self._settings
        reply = self._talk.ask(
            question,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed + self._drawn,
        )
        self._drawn += 1
        if self._talk.forgotten > before:
            info(f"(the context is full: the {self._talk.forgotten} oldest turns are left out)")
        done = self._finish(reply)
        if done.text.strip():
            self._talk.keep(question, done.text)
        if self._json:
            row = {"text": done.text.strip(), "tokens": done.tokens, "seconds": round(done.seconds, 3)}
            emit_line(json.dumps({**row, "stop": done.stop}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif done.stop in _NOTES:
            info(_NOTES[done.stop].format(tokens=done.tokens))
        elif not done.text.strip():
            info("(the model said nothing)")

    def _finish(self, reply: Reply) -> Generation:
        """Print an answer as it comes, until it ends or is stopped."""
        try:
            begun = self._json
            for piece in reply:
                # What stands between "Answer:" and its first word belongs to neither.
                shown = piece if begun else piece.lstrip()
                if shown and not self._json:
                    begun = True
                    sys.stdout.write(sanitize_terminal(shown))
                    sys.stdout.flush()
            done = reply.finish()
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            done = reply.stop()
        if not self._json:
            sys.stdout.write("\n")
            sys.stdout.flush()
        return done

    def _obey(self, words: str) -> None:
        name, _, rest = words.partition(" ")
        if name not in self._commands:
            near = get_close_matches(name, self._commands, n=1)
            hint = f"did you mean /{near[0]}? " if near else ""
            raise UsageError(f"there is no /{name}", hint=f"{hint}/help lists what there is")
        self._commands[name][0](rest.strip())

    def _help(self, _: str) -> None:
        for name, (_do, argument, told) in self._commands.items():
            info(f"  {f'/{name} {argument}':14} {told}")

    def _quit(self, _: str) -> None:
        self.ended = True

    def _clear(self, _: str) -> None:
        self._talk.clear()
        info("(a new conversation)")

    def _system(self, text: str) -> None:
        self._talk.system = text or None
        info("(told)" if text else "(no system prompt)")

    def _regenerate(self, _: str) -> None:
        if not self._talk.turns:
            raise UsageError("nothing was asked yet")
        turn = self._talk.turns.pop()
        before = len(self._talk.turns)
        try:
            self._answer(turn[0])
        finally:
            if len(self._talk.turns) == before:  # the answer there was is better than none
                self._talk.turns.append(turn)

    def _temperature(self, text: str) -> None:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise UsageError(f"{text!r} is no temperature", hint="it is a number, 0 or more: /temp 0.7")
        self._settings.temperature = value
        info(f"(temperature {value:g})")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file", hint="/save talk.jsonl")
        try:
            path = Path(name).expanduser()
            path.exists()
        except (RuntimeError, ValueError) as error:  # no such user, a zero byte
            raise UsageError(f"{name!r} is no path: {error}", hint="/save talk.jsonl") from error
        line = json.dumps({"messages": self._talk.messages()}, ensure_ascii=False)
        with translate_write_errors(path), path.open("ab") as file:
            file.write(line.encode(errors="replace") + b"\n")
        info(f"({len(self._talk.turns)} turns appended to {path})")
