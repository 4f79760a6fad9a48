"""Special tokens: which tokens begin a text, end a text and end a turn."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["STOP_TOKENS_OF_LLAMACPP", "SpecialTokens", "end_of_text_token", "stop_tokens"]

# A chat model's `eos` often is its end of turn, so the end of a text is looked up by name first.
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
# `special_eog_ids` in llama.cpp's src/llama-vocab.cpp: it stops at these tokens, whatever their type.
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

    `template_tokens`: further special tokens by the name of their template variable (`mask_token`); `further_stop_ids`: further
    stop ids of the source (a generation_config's `eos_token_id`, a GGUF's `eot_token_id`); `max_length`: the
    model's context in tokens, if the source has it.
    """

    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    padding: int | None = None
    template_tokens: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    further_stop_ids: frozenset[int] = frozenset()
    chat_template: str | None = None
    max_length: int | None = None


def end_of_text_token(control: Mapping[str, int], special: SpecialTokens) -> int | None:
    """Return the token that ends a document; None if there is none. `control`: control tokens by name."""
    named = next((control[name] for name in _END_OF_TEXT if name in control), special.eos)
    return min(special.further_stop_ids, default=None) if named is None else named


def stop_tokens(control: Mapping[str, int], special: SpecialTokens) -> frozenset[int]:
    """Return all tokens that end a text or a turn."""
    named = {control[name] for name in (*STOP_TOKENS_OF_LLAMACPP, *_FURTHER_STOP_TOKENS) if name in control}
    eos = set() if special.eos is None else {special.eos}
    return frozenset(named | eos | special.further_stop_ids)
