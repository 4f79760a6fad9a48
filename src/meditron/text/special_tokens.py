"""Special tokens of a vocabulary: the tokens that begin a text, end a text, and end a turn of a chat."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "MAX_ADDED_TOKENS",
    "STOP_TOKENS_OF_LLAMACPP",
    "SpecialTokens",
    "end_of_text_token",
    "stop_tokens",
    "token_text_problem",
]

MAX_ADDED_TOKENS = 1 << 16
"""Maximum number of tokens that a finetune adds; published vocabularies have a few hundred special tokens."""
_MAX_CHARACTERS = 256
# Names of end-of-text tokens, tried before EOS, because the EOS token of a chat model often ends a turn.
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
# Tokens at which llama.cpp stops generating, whatever their type (`special_eog_ids` in src/llama-vocab.cpp).
STOP_TOKENS_OF_LLAMACPP = frozenset(
    {
        "<|endoftext|>",
        "<|end_of_text|>",
        "</s>",
        "<eos>",
        "[EOS]",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
        "<turn|>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<|tool_response>",
    }
)
_FURTHER_STOP_TOKENS = ("<｜end▁of▁sentence｜>", "<|eot|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Special token ids and settings of a vocabulary.

    Each is read from tokenizer_config.json and the files beside it, or from a GGUF file's metadata.
    """

    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    padding: int | None = None
    template_tokens: Mapping[str, int] = field(default_factory=dict)
    """Further special tokens: variable name in chat templates (`mask_token`) → id."""
    add_bos: bool = False
    """True if BOS is prepended to every text."""
    further_stop_ids: frozenset[int] = frozenset()
    """Stop ids besides EOS: generation_config.json's `eos_token_id`, a GGUF file's `eot_token_id`."""
    chat_template: str | None = None
    """The chat template's Jinja source."""
    max_length: int | None = None
    """The model's context length in tokens; None if the files do not name it."""


def end_of_text_token(control: Mapping[str, int], special: SpecialTokens) -> int | None:
    """Return the id of the token that ends a document, or None; `control` maps control tokens to ids."""
    named = next((control[name] for name in _END_OF_TEXT if name in control), special.eos)
    return min(special.further_stop_ids, default=None) if named is None else named


def stop_tokens(control: Mapping[str, int], special: SpecialTokens) -> frozenset[int]:
    """Return the ids of all tokens that end a text or a turn; `control` maps control tokens to their ids."""
    named = {control[name] for name in (*STOP_TOKENS_OF_LLAMACPP, *_FURTHER_STOP_TOKENS) if name in control}
    eos = set() if special.eos is None else {special.eos}
    return frozenset(named | eos | special.further_stop_ids)


def token_text_problem(token: str) -> str | None:
    """Return the reason why a text cannot be a special token; None if it can."""
    if not token:
        return "is empty"
    if not token.strip():
        return "is whitespace only"
    if token != token.strip():
        return "begins or ends with whitespace, which chat templates remove"
    if len(token) > _MAX_CHARACTERS:
        return f"has more than {_MAX_CHARACTERS} characters"
    if not token.isprintable():  # line breaks, control characters, and code points without a character
        return "has a character that cannot be printed"
    return None
