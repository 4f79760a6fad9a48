"""The tokens that a finetune adds to its base model's vocabulary. Does not import torch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from meditron.core.console import warn
from meditron.text.added_tokens import with_special_tokens
from meditron.text.tokenizer import Tokenizer
from meditron.train.examples import Example
from meditron.train.finetune_config import FinetuneConfig

__all__ = [
    "AddedToken",
    "added_token_ids",
    "count_added_tokens",
    "training_tokenizer",
    "warn_of_unused_tokens",
]


class AddedToken(TypedDict):
    """A token of `added_tokens`, as the metrics record it."""

    token: str
    id: int
    new: bool
    """False if the tokenizer of the base model has the token."""
    count: int
    """Number of times that it occurs in the rows of an epoch."""


def training_tokenizer(config: FinetuneConfig, base: Tokenizer) -> Tokenizer:
    """Return the tokenizer that a finetune trains with: its base model's, with the added tokens.

    Raises as `with_special_tokens`.
    """
    return with_special_tokens(base, config.added_tokens) if config.added_tokens else base


def added_token_ids(config: FinetuneConfig, tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the added tokens in the result of `training_tokenizer`."""
    return {token: tokenizer.encode(token, special=True, bos=False)[0] for token in config.added_tokens}


def count_added_tokens(ids: Mapping[str, int], known: int, trained: Iterable[Example]) -> list[AddedToken]:
    """Count the added tokens in the training rows.

    Args:
        ids: Result of `added_token_ids`.
        known: Number of tokens of the base model's tokenizer.
        trained: The rows that are trained on.
    """
    counts = Counter(i for example in trained for i in example.tokenized_turns.ids)
    return [
        {"token": token, "id": number, "new": number >= known, "count": counts[number]}
        for token, number in ids.items()
    ]


def warn_of_unused_tokens(added: Sequence[AddedToken]) -> None:
    """Warn of new tokens that no row contains: their embedding would stay the mean of the others."""
    if unused := [entry["token"] for entry in added if entry["new"] and not entry["count"]]:
        warn(
            f"no training row contains {', '.join(unused)}: only a chat template writes added tokens, and "
            "their rows of the embedding are not learned"
        )
