"""Text generation with a cache of keys and values: greedy or sampled, one sequence at a time."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from meditron.model.llama import KVCache, Llama
from meditron.model.sampling import check
from meditron.model.tensors import require_finite

__all__ = ["generate", "pick"]

_GREEDY = 1e-6
"""A temperature below this leaves nothing to draw: the best token's chance is one in fp32."""

# Legend: S sequence, D width, V vocabulary.


def generate(
    model: Llama,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Yield the ids that follow the prompt.

    Ends after `max_tokens`, at the model's context, or before a stop id, which is not yielded.
    Temperature 0 is greedy; among equal logits the lowest id wins. Otherwise ids are drawn from the
    `top_k` likeliest (0: all) that together hold `top_p` of the probability, with a generator of `seed`.
    Raises UsageError for a prompt that is empty or fills the context, and for settings out of range;
    EngineError, while it runs, if the logits are not finite.
    """
    context = model.config.max_position_embeddings
    check(len(prompt_ids), context, temperature, top_k, top_p)
    limit = min(max_tokens, context - len(prompt_ids))
    return _continue(model, prompt_ids, limit, temperature, top_k, top_p, seed, frozenset(stop_ids))


@torch.inference_mode()
def _continue(
    model: Llama,
    prompt_ids: Sequence[int],
    limit: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop_ids: frozenset[int],
) -> Iterator[int]:
    weight_VD = model.head_weight
    device = weight_VD.device
    generator = torch.Generator(device).manual_seed(seed % (1 << 64))
    cache = KVCache(model.config, 1, len(prompt_ids) + limit, weight_VD.dtype, device)
    ids_1S = torch.tensor([list(prompt_ids)], device=device)
    for _ in range(limit):
        hidden_D = model(ids_1S, cache=cache)[0, -1]
        logits_V = weight_VD @ hidden_D
        require_finite(model, logits_V)
        chosen = pick(logits_V.float(), temperature, top_k, top_p, generator)
        if chosen in stop_ids:
            return
        yield chosen
        ids_1S = torch.tensor([[chosen]], device=device)


def pick(logits_V: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Choose the next id from fp32 logits: the best at temperature 0, else a draw from what is left.

    Temperature first, then `top_k`, then `top_p` (nucleus sampling, Holtzman et al. 2020): the smallest
    set of likeliest ids whose probabilities reach `top_p`.
    """
    if temperature < _GREEDY or top_k == 1:
        return int(logits_V.argmax())
    count = min(top_k or len(logits_V), len(logits_V))
    best_V, ids_V = torch.topk(logits_V, count)
    chances_V = ((best_V - best_V[0]) / temperature).softmax(dim=-1)  # in this order nothing overflows
    before_V = chances_V.cumsum(dim=-1) - chances_V
    kept_V = torch.where(before_V < top_p, chances_V, 0.0)
    return int(ids_V[torch.multinomial(kept_V, 1, generator=generator)])
