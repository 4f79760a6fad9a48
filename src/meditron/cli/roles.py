"""Rows that a model was finetuned on, as people read them: whose turn it is, and what is learned."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditron.core.console import print_styled, sanitize_terminal
from meditron.core.errors import InputError

if TYPE_CHECKING:
    from meditron.text.tokenizer import Tokenizer

__all__ = ["print_roles", "spoken_row"]

_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green"}
_LONGEST = 600  # characters of one role's text that are printed: its beginning and its end


def spoken_row(path: Path, row: dict[str, Any], tokenizer: "Tokenizer") -> dict[str, Any]:
    """A line of `rows.jsonl.zst` with `spans`: role, tokens, whether they are learned, and their text.

    InputError where its roles are not those of its tokens.
    """
    from meditron.text.finetune_templates import Span, decode_spans

    place = f"the row {row.get('id')}"
    try:
        ids = [int(token) for token in row["ids"]]
        spans = [Span(str(role), int(tokens), bool(learned)) for role, tokens, learned in row["roles"]]
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(path, f"no tokens with roles: {error}", place=place) from error
    if sum(span.tokens for span in spans) != len(ids):
        raise InputError(path, f"{len(ids)} tokens with roles for another number of them", place=place)
    told = [
        {"role": span.role, "tokens": span.tokens, "learned": span.in_loss, "text": text}
        for span, text in decode_spans(tokenizer, ids, spans)
    ]
    return row | {"spans": told}


def print_roles(row: dict[str, Any], indent: str) -> None:
    """Print a row on stdout: in colours where there are any, else what is learned in brackets."""
    spans = row["spans"]
    learned = sum(span["tokens"] for span in spans if span["learned"])
    head = f"{indent}{row.get('id')}: {row.get('split')}, {len(row['ids'])} tokens, {learned} learned"
    sys.stdout.write(f"{sanitize_terminal(head)}\n{indent}  ")
    sys.stdout.flush()
    texts = [_shortened(span["text"]).replace("\n", f"⏎\n{indent}  ") for span in spans]
    texts[-1:] = [text.rstrip() for text in texts[-1:]]
    styles = [_style(span) for span in spans]
    if not print_styled(list(zip(texts, styles, strict=True))):
        marked = [
            f"⟦{span['role']} {text}⟧" if span["learned"] else f"‹{span['role']}›{text}"
            for span, text in zip(spans, texts, strict=True)
        ]
        sys.stdout.write(f"{sanitize_terminal(''.join(marked))}\n")


def _style(span: dict[str, Any]) -> str:
    return f"{'bold underline ' if span['learned'] else ''}{_STYLES.get(span['role'], 'default')}"


def _shortened(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} […] {text[-half:]}"
