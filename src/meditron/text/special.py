"""What single tokens are for: what begins a text, what ends one, what ends a turn."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ENDS_BY_NAME", "Special", "end_of_text", "stops"]

# A chat model's `eos` is its end of turn, so the end of a text is found by name first.
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
# llama.cpp's (`special_eog_ids` in src/llama-vocab.cpp), whatever type the tokens have: it stops there too.
ENDS_BY_NAME = frozenset(
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
_FURTHER_ENDS = ("<｜end▁of▁sentence｜>", "<|eot|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """Ids and settings that stand beside a vocabulary.

    `named`: further special tokens by the name of their template variable (`mask_token`); `stop`: further ids
    that the source names as ends (a generation_config's `eos_token_id`, a GGUF's `eot_token_id`);
    `max_length`: the model's context in tokens, where the source says it.
    """

    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    padding: int | None = None
    named: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    stop: frozenset[int] = frozenset()
    chat_template: str | None = None
    max_length: int | None = None


def end_of_text(control: Mapping[str, int], special: Special) -> int | None:
    """The token that ends a document, given the control tokens by name; None where nothing does."""
    named = next((control[name] for name in _END_OF_TEXT if name in control), special.eos)
    return min(special.stop, default=None) if named is None else named


def stops(control: Mapping[str, int], special: Special) -> frozenset[int]:
    """Every token that ends a text or a turn."""
    named = {control[name] for name in (*ENDS_BY_NAME, *_FURTHER_ENDS) if name in control}
    eos = set() if special.eos is None else {special.eos}
    return frozenset(named | eos | special.stop)
