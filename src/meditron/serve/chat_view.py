"""What the chat page shows of a conversation, and its export as Markdown and JSON."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from meditron.core.disclaimer import DISCLAIMER
from meditron.serve.conversations import Conversation, Match, Message
from meditron.serve.markdown import render_markdown

__all__ = ["EXPORTS", "file_stem", "view_conversation", "view_match", "view_message"]


def view_message(message: Message, siblings: Sequence[int] = ()) -> dict[str, Any]:
    """Return a message for the page. Answers have their text as HTML too, questions are shown as they are."""
    view: dict[str, Any] = {
        "id": message.id,
        "parent": message.parent,
        "role": message.role,
        "state": message.state,
        "text": message.text,
        "siblings": list(siblings) or [message.id],
    }
    if message.answer is not None:
        view |= {"html": render_markdown(message.text), "answer": asdict(message.answer)}
    return view


def view_conversation(conversation: Conversation, is_running: Callable[[int], bool]) -> dict[str, Any]:
    """Return the path that is shown. The answers that end it side by side are its `columns`.

    A pending answer that is not running was interrupted by the end of the server.
    """

    def view(message: Message) -> dict[str, Any]:
        lost = message.state == "pending" and not is_running(message.id)
        seen = view_message(message, siblings[message.parent])
        return {**seen, "state": "interrupted"} if lost else seen

    siblings: dict[int | None, list[int]] = {}
    for message in conversation.messages:
        siblings.setdefault(message.parent, []).append(message.id)
    path = conversation.path()
    last = path[-1] if path else None
    beside = [
        message
        for message in conversation.messages
        if last and last.turn and (message.turn, message.parent) == (last.turn, last.parent)
    ]
    columns = beside if len(beside) > 1 else []
    return {
        **view_match(Match(conversation)),
        "settings": conversation.settings,
        "leaf": conversation.leaf,
        # Messages below the end of the path, which the user has hidden by branching.
        "later": siblings[last.id][-1] if last and last.id in siblings else None,
        "messages": [view(message) for message in path],
        "columns": [view(message) for message in columns],
    }


def view_match(match: Match) -> dict[str, Any]:
    """Return a conversation of a list."""
    found = match.conversation
    return {"id": found.id, "title": found.title, "updated": found.updated, "snippet": match.snippet}


def file_stem(title: str) -> str:
    """Return a file name's beginning for a title, in ASCII."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:48] or "conversation"


def _export_markdown(conversation: Conversation) -> str:
    """Return the shown path as Markdown, with the provenance of each answer."""
    parts = [f"# {conversation.title}", f"*{DISCLAIMER}*", f"Created {_iso(conversation.created)}."]
    system = None
    for message in conversation.path():
        answer = message.answer
        if answer is None:
            parts += [f"## Question ({_iso(message.created)})", message.text]
            continue
        if answer.system and answer.system != system:
            parts.append(f"System prompt:\n\n{_quote(answer.system)}")
        system = answer.system
        note = "" if message.state == "done" else f", {message.state}"
        parts += [f"## Answer ({answer.model}{note})", message.text]
        facts = [f"{name}: {value}" for name, value in _facts(message)]
        parts.append("\n".join(f"- {fact}" for fact in facts))
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(message: Message) -> list[tuple[str, str]]:
    answer = message.answer
    if answer is None:
        return []
    of = answer.provenance
    prompt = answer.prompt or {}
    facts = [
        ("model", answer.model),
        ("base model", of.get("base_model")),
        ("quantization", of.get("quantization")),
        ("SHA-256", of.get("sha256")),
        ("knowledge cut-off", of.get("knowledge_cutoff")),
        ("prompt", f"{prompt.get('name')} {prompt.get('version')}" if prompt else None),
        ("sampling", json.dumps(dict(answer.sampling)) if answer.sampling else None),
        ("tokens", answer.output_tokens),
        ("seconds", None if answer.seconds is None else f"{answer.seconds:.1f}"),
        ("error", answer.error),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _export_json(conversation: Conversation) -> str:
    """Return the whole tree as JSON; `messages` is the shown path in the format of finetuning rows."""
    value = {
        "title": conversation.title,
        "created": _iso(conversation.created),
        "disclaimer": DISCLAIMER,
        "messages": [{"role": message.role, "content": message.text} for message in conversation.path()],
        "tree": [asdict(message) for message in conversation.messages],
    }
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _join_markdown(conversations: Iterable[Conversation]) -> Iterator[str]:
    for number, conversation in enumerate(conversations):
        yield ("\n---\n\n" if number else "") + _export_markdown(conversation)


def _join_json(conversations: Iterable[Conversation]) -> Iterator[str]:
    yield '{"conversations": [\n'
    for number, conversation in enumerate(conversations):
        yield (",\n" if number else "") + _export_json(conversation).rstrip("\n")
    yield "\n]}\n"


EXPORTS: Mapping[
    str, tuple[str, Callable[[Conversation], str], Callable[[Iterable[Conversation]], Iterator[str]]]
] = {
    "md": ("text/markdown; charset=utf-8", _export_markdown, _join_markdown),
    "json": ("application/json", _export_json, _join_json),
}
"""Ending of an exported file → its media type, the text of one conversation, and the parts of many."""
