"""Text generation with a KV cache, greedy or sampled: one sequence as a stream, or several in a batch."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from meditron.model.llama import KVCache, Llama
from meditron.model.sampling import SamplingConfig, max_new_tokens
from meditron.model.tensors import require_finite

__all__ = ["generate", "generate_batch", "pick_token"]

# Below this temperature the best token's probability rounds to 1 in fp32, and the division could overflow.
_GREEDY = 1e-6

# Shapes: B rows of a batch, S sequence of new tokens, T sequence of all tokens, D width, V vocabulary.


def generate(
    model: Llama,
    prompt_ids: Sequence[int],
    sampling: SamplingConfig,
    *,
    stop_ids: Collection[int] = (),
    blank_ids: Collection[int] = (),
) -> Iterator[int]:
    """Return an iterator over the ids that follow the prompt.

    The iterator ends after `max_tokens`, at the end of the model's context, or before a stop id. Among equal
    logits the lowest id is chosen.

    Raises:
        UsageError: the prompt is empty or fills the context.
        EngineError: during iteration: the logits are not finite.
    """
    steps = generate_batch(model, [prompt_ids], [sampling], stop_ids=stop_ids, blank_ids=blank_ids)
    return (token for [token] in steps if token is not None)


def generate_batch(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[SamplingConfig],
    *,
    stop_ids: Collection[int] = (),
    blank_ids: Collection[int] = (),
) -> Iterator[list[int | None]]:
    """Return an iterator over steps: the next id of each prompt, None once its text has ended.

    Every prompt has its own sampling settings and random generator, so a text does not depend on the others
    of its batch (up to the rounding of matrix products of another size). Equal prompts are processed once,
    and each gets a copy of the KV cache. A text of `blank_ids` (tokens without a visible character) does not
    end if its sampling is `nonempty`. Errors are those of `generate`.
    """
    context = model.config.max_position_embeddings
    limits = [
        max_new_tokens(len(ids), context, sampling.max_tokens)
        for ids, sampling in zip(prompts, samplings, strict=True)
    ]
    return _generate_steps(model, prompts, samplings, limits, frozenset(stop_ids), frozenset(blank_ids))


@torch.inference_mode()
def _generate_steps(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[SamplingConfig],
    limits: Sequence[int],
    stop_ids: frozenset[int],
    blank_ids: frozenset[int],
) -> Iterator[list[int | None]]:
    device = model.head_weight.device
    generators = [torch.Generator(device).manual_seed(s.seed % (1 << 64)) for s in samplings]
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    blank = [sampling.nonempty for sampling in samplings]
    width = max(map(len, prompts))
    cache = KVCache(len(model.model.layers), width + max(limits))
    # Shorter prompts are padded on the left, so that the newest token of every row is in the last column.
    padding = [width - len(ids) for ids in prompts]
    rows = list(range(len(prompts)))
    hidden_BD = _prefill(model, prompts, cache)
    for step in range(1, max(limits) + 1):
        logits_BV = _last_logits(model.head_weight, hidden_BD)
        require_finite(model, logits_BV)
        tokens: list[int | None] = [None] * len(prompts)
        for row, logits_V in zip(rows, logits_BV.float(), strict=True):
            allowed_V = logits_V.index_fill(0, stops, -torch.inf) if blank[row] else logits_V
            token = pick_token(allowed_V, samplings[row], generators[row])
            blank[row] = blank[row] and token in blank_ids
            tokens[row] = None if token in stop_ids else token
        yield tokens
        active = [b for b, row in enumerate(rows) if tokens[row] is not None and step < limits[row]]
        if not active:
            return
        if len(active) < len(rows):
            # A finished row is removed from the batch, else it would be computed until the longest text ends.
            cache.select_rows(active, device)
            rows = [rows[b] for b in active]
        ids_B1 = torch.tensor([[tokens[row]] for row in rows], device=device)
        positions_B1, mask = _positions_and_mask([padding[row] for row in rows], cache.length, ids_B1)
        hidden_BD = model(ids_B1, positions_BS=positions_B1, mask=mask, cache=cache)[:, -1]


def _prefill(model: Llama, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Fill the cache with the prompts, and return the hidden state of each prompt's last token (B, D)."""
    device = model.head_weight.device
    unique = list(dict.fromkeys(map(tuple, prompts)))
    width = max(map(len, unique))
    padding = [width - len(ids) for ids in unique]
    ids_BS = torch.tensor(
        [[*[0] * pad, *ids] for pad, ids in zip(padding, unique, strict=True)], device=device
    )
    positions_BS, mask = _positions_and_mask(padding, 0, ids_BS)
    hidden_BD: Tensor = model(ids_BS, positions_BS=positions_BS, mask=mask, cache=cache)[:, -1]
    if len(unique) == len(prompts):
        return hidden_BD
    # Several samples of one prompt: the rows of the cache are copied instead of computed again.
    index = {ids: row for row, ids in enumerate(unique)}
    rows = [index[tuple(ids)] for ids in prompts]
    cache.select_rows(rows, device)
    return hidden_BD[torch.tensor(rows, device=device)]


def _positions_and_mask(
    padding: Sequence[int], past: int, ids_BS: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return positions and mask (B, 1, S, T) of rows padded on the left; (None, None) without padding."""
    if not any(padding):
        return None, None
    device = ids_BS.device
    padding_B1 = torch.tensor(padding, device=device)[:, None]
    keys_T = torch.arange(past + ids_BS.shape[1], device=device)
    queries_S = keys_T[past:]
    real_B1T = (keys_T >= padding_B1)[:, None]
    # A padding query attends to itself: a softmax over no keys is NaN, and a NaN value spoils a row even with
    # attention weight 0.
    itself_ST = keys_T == queries_S[:, None]
    mask_BST = real_B1T & (keys_T <= queries_S[:, None]) | itself_ST
    return (queries_S - padding_B1).clamp(min=0), mask_BST[:, None]


def _last_logits(weight_VD: Tensor, hidden_BD: Tensor) -> Tensor:
    # For one row a matrix-vector product is faster: it reads the weight once and needs no packing for a GEMM.
    return (weight_VD @ hidden_BD[0])[None] if len(hidden_BD) == 1 else hidden_BD @ weight_VD.T


def pick_token(logits_V: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Choose the next id from fp32 logits: the most likely one at temperature 0, else a random draw.

    The order is temperature, `top_k`, `top_p` (nucleus sampling, Holtzman et al. 2020): the draw is from the
    smallest set of most likely ids whose probabilities reach `top_p`.
    """
    if sampling.temperature < _GREEDY or sampling.top_k == 1:
        return int(logits_V.argmax())
    count = min(sampling.top_k or len(logits_V), len(logits_V))
    best_V, ids_V = torch.topk(logits_V, count)
    # The maximum is subtracted before the division: with a small temperature the quotient would overflow.
    probabilities_V = ((best_V - best_V[0]) / sampling.temperature).softmax(dim=-1)
    # The sums exclude the id itself, so that the most likely id and the id that crosses `top_p` are always
    # kept.
    before_V = probabilities_V.cumsum(dim=-1) - probabilities_V
    kept_V = torch.where(before_V < sampling.top_p, probabilities_V, 0.0)
    return int(ids_V[torch.multinomial(kept_V, 1, generator=generator)])
