"""Printing of finetuning rows, with the role of each span and a mark on the spans that are in the loss."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditron.core.console import print_styled, sanitize_terminal
from meditron.core.errors import InputError

if TYPE_CHECKING:
    from meditron.text.tokenizer import Tokenizer

__all__ = ["print_spans", "row_with_spans"]

_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green"}
_PRINTED = 600  # characters of one span: its beginning and its end


def row_with_spans(path: Path, row: dict[str, Any], tokenizer: "Tokenizer") -> dict[str, Any]:
    """Add `spans` to a finetuning row: each with its role, number of tokens, text and `learned`.

    `learned` is true for a span that is in the loss.

    Raises:
        InputError: the roles do not match the tokens.
    """
    from meditron.text.finetune_templates import Span, decode_spans

    place = f"row {row.get('id')}"
    try:
        ids = [int(token) for token in row["ids"]]
        spans = [Span(str(role), int(tokens), bool(learned)) for role, tokens, learned in row["roles"]]
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(path, f"ids or roles are missing or malformed: {error}", place=place) from error
    if sum(span.tokens for span in spans) != len(ids):
        raise InputError(
            path, f"{len(ids)} tokens, but roles for {sum(span.tokens for span in spans)}", place=place
        )
    decoded = [
        {"role": span.role, "tokens": span.tokens, "learned": span.in_loss, "text": text}
        for span, text in decode_spans(tokenizer, ids, spans)
    ]
    return row | {"spans": decoded}


def print_spans(row: dict[str, Any], indent: str) -> None:
    """Print a finetuning row on stdout, in colors or with brackets around the spans that are in the loss."""
    spans = row["spans"]
    in_loss = sum(span["tokens"] for span in spans if span["learned"])
    source = f"{row['source']} " if "source" in row else ""
    counts = f"{len(row['ids'])} tokens, {in_loss} in the loss"
    head = f"{indent}{source}{row.get('id')}: {row.get('split')}, {counts}"
    sys.stdout.write(f"{sanitize_terminal(head)}\n{indent}  ")
    sys.stdout.flush()
    texts = [_shorten_text(span["text"]).replace("\n", f"⏎\n{indent}  ") for span in spans]
    texts[-1:] = [text.rstrip() for text in texts[-1:]]
    styles = [_span_style(span) for span in spans]
    if not print_styled(list(zip(texts, styles, strict=True))):
        marked = [
            f"‹{span['role']}›{f'⟦{text}⟧' if span['learned'] else text}"
            for span, text in zip(spans, texts, strict=True)
        ]
        sys.stdout.write(f"{sanitize_terminal(''.join(marked))}\n")


def _span_style(span: dict[str, Any]) -> str:
    return f"{'bold underline ' if span['learned'] else ''}{_STYLES.get(span['role'], 'default')}"


def _shorten_text(text: str) -> str:
    half = _PRINTED // 2
    return text if len(text) <= _PRINTED else f"{text[:half]} […] {text[-half:]}"
