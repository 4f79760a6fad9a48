"""A chat session at a terminal or in a pipe: each input line is answered, or run as a command like /help."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from meditron.cli.errors import explain_error
from meditron.cli.options import print_json_line
from meditron.core.console import info, sanitize_terminal, warn
from meditron.core.errors import MeditronError, UsageError
from meditron.engine import Generation, Reply
from meditron.engine.conversation import Chat
from meditron.model.sampling import SamplingConfig
from meditron.store.files import translate_write_errors

__all__ = ["Session"]

_STOP_NOTES = {
    "length": "(truncated at {tokens} tokens; --max-tokens allows more)",
    "context": "(truncated: the model's context is full)",
    "stopped": "(stopped)",
}


class Session:
    """A chat session, which handles one input line at a time. Answers go to stdout, all else to stderr."""

    def __init__(
        self,
        conversation: Chat,
        sampling: SamplingConfig,
        *,
        interactive: bool,
        as_json: bool = False,
    ) -> None:
        """Start a session; if it is interactive, Ctrl-C stops the answer and not the program."""
        self.failed = False
        """True if a line has failed."""
        self.ended = False
        """True if the user has typed /quit."""
        self._conversation, self._sampling = conversation, sampling
        self._interactive, self._json = interactive, as_json
        self._answers = 0
        self._commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "help": (self._list_commands, "", "list the commands"),
            "clear": (self._clear_conversation, "", "start a new conversation"),
            "system": (self._set_system_prompt, "TEXT", "set the system prompt; without TEXT remove it"),
            "regen": (self._regenerate_answer, "", "generate another answer to the last question"),
            "temp": (self._set_temperature, "X", "set the temperature; 0 = greedy decoding"),
            "save": (
                self._save_conversation,
                "FILE",
                'append the conversation to FILE as a line {"messages": …}',
            ),
            "quit": (self._end_session, "", "end the conversation, like Ctrl-D"),
        }

    def handle_line(self, line: str) -> None:
        """Answer a line or run its command. A failure is reported, and the session continues."""
        line = line.strip()
        try:
            if line.startswith("/"):
                self._run_command(line[1:])
            elif line:
                self._answer_question(line)
        except MeditronError as error:
            self.failed = True
            message, hint, _ = explain_error(error)
            warn(f"{message} ({hint})" if hint else message)

    def _answer_question(self, question: str) -> None:
        before = self._conversation.dropped_turns
        # Each answer has its own seed: with one seed /regen would repeat the answer.
        sampling = replace(self._sampling, seed=self._sampling.seed + self._answers)
        reply = self._conversation.ask(question, sampling)
        self._answers += 1
        if self._conversation.dropped_turns > before:
            info(f"(the context is full: the {self._conversation.dropped_turns} oldest turns are left out)")
        done = self._print_reply(reply)
        if done.text.strip():
            self._conversation.add_turn(question, done.text)
        if self._json:
            row = {"text": done.text.strip(), "tokens": done.tokens, "seconds": round(done.seconds, 3)}
            print_json_line(json.dumps({**row, "stop": done.stop}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif done.stop in _STOP_NOTES:
            info(_STOP_NOTES[done.stop].format(tokens=done.tokens))
        elif not done.text.strip():
            info("(the answer is empty)")

    def _print_reply(self, reply: Reply) -> Generation:
        """Print an answer while it is generated, until it ends or Ctrl-C stops it."""
        try:
            started = self._json
            for piece in reply:
                # The blanks between "Answer:" in the prompt and the answer's first word are not printed.
                shown = piece if started else piece.lstrip()
                if shown and not self._json:
                    started = True
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

    def _run_command(self, words: str) -> None:
        name, _, argument = words.partition(" ")
        if name not in self._commands:
            near = get_close_matches(name, self._commands, n=1)
            hint = f"did you mean /{near[0]}? " if near else ""
            raise UsageError(f"there is no command /{name}", hint=f"{hint}/help lists the commands")
        self._commands[name][0](argument.strip())

    def _list_commands(self, _: str) -> None:
        for name, (_run, argument, help_text) in self._commands.items():
            info(f"  {f'/{name} {argument}':14} {help_text}")

    def _end_session(self, _: str) -> None:
        self.ended = True

    def _clear_conversation(self, _: str) -> None:
        self._conversation.clear()
        info("(a new conversation)")

    def _set_system_prompt(self, text: str) -> None:
        self._conversation.system_prompt = text or None
        info("(the system prompt is set)" if text else "(the system prompt is removed)")

    def _regenerate_answer(self, _: str) -> None:
        if not self._conversation.turns:
            raise UsageError("/regen: there is no question yet", hint="ask one first")
        turn = self._conversation.turns.pop()
        before = len(self._conversation.turns)
        try:
            self._answer_question(turn[0])
        finally:
            # If there is no new answer, because of an error or Ctrl-C, the old one is kept.
            if len(self._conversation.turns) == before:
                self._conversation.turns.append(turn)

    def _set_temperature(self, text: str) -> None:
        try:
            self._sampling = replace(self._sampling, temperature=float(text))
        except (ValueError, UsageError) as error:
            raise UsageError(
                f"/temp: the temperature must be a number ≥ 0, got {text!r}", hint="example: /temp 0.7"
            ) from error
        info(f"(temperature {self._sampling.temperature:g})")

    def _save_conversation(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file", hint="example: /save talk.jsonl")
        try:
            path = Path(name).expanduser()
            path.exists()
        except (RuntimeError, ValueError) as error:  # an unknown ~user; a null byte
            raise UsageError(
                f"/save: {name!r} is not a valid path: {error}", hint="example: /save talk.jsonl"
            ) from error
        line = json.dumps({"messages": self._conversation.messages()}, ensure_ascii=False)
        with translate_write_errors(path), path.open("ab") as file:
            file.write(line.encode(errors="replace") + b"\n")
        info(f"({len(self._conversation.turns)} turns appended to {path})")
