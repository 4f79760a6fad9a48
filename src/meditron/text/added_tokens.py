"""Special tokens that a finetune adds to the tokenizer of its base model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tokenizers import AddedToken

from meditron.core.errors import InputError, UsageError
from meditron.text.hf_tokens import with_added_tokens

if TYPE_CHECKING:
    from meditron.text.tokenizer import Tokenizer

__all__ = ["with_special_tokens"]


def with_special_tokens(tokenizer: "Tokenizer", tokens: Sequence[str]) -> "Tokenizer":
    """Return a tokenizer in which all of `tokens` are special tokens.

    A token that the tokenizer matches already keeps its id and becomes special. New ones get the ids after
    the vocabulary, in the order given, as from transformers' `add_special_tokens`.

    Raises:
        UsageError: A token is an ordinary piece of the vocabulary. As a special token it would disappear from
            decoded texts.
        InputError: Ids are missing in the vocabulary, so that a new token would get one inside it.
    """
    spec = tokenizer.spec
    known = {token["content"] for token in spec["added_tokens"]}
    for token in tokens:
        if token in spec["model"]["vocab"] and token not in known:
            raise UsageError(
                f"added_tokens: {token!r} is an ordinary token of the vocabulary of {tokenizer.path}",
                hint="choose a text that no document contains, such as <|name|>",
            )
    special = [
        {**token, "special": True} if token["content"] in tokens else token for token in spec["added_tokens"]
    ]
    new = [token for token in tokens if token not in known]
    spec = with_added_tokens(
        tokenizer.path,
        {**spec, "added_tokens": special},
        # Not normalized: a normalizer may prepend `▁`, and llama.cpp matches exact texts.
        [AddedToken(token, special=True, normalized=False) for token in new],
    )
    extended = replace(tokenizer, spec=spec)
    ids = [entry["id"] for entry in spec["added_tokens"] if entry["content"] in new]
    if ids != list(range(tokenizer.vocab_size, tokenizer.vocab_size + len(new))):
        raise InputError(
            tokenizer.path, "ids are missing in the vocabulary, so no token can be added", place="model.vocab"
        )
    return extended
