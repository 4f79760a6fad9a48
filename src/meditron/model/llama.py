"""Llama (Touvron et al. 2023) in plain torch, under HF's parameter names.

The model knows nothing of parallelism, dtype or compilation: those are applied to it from outside,
block by block. Legend of tensor names:

B batch, S sequence of queries, T sequence of keys, D width, H heads, K key/value heads, E head width,
V vocabulary, F width of the MLP.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meditron.model.config import LlamaConfig
from meditron.model.rope import rotation

__all__ = ["Block", "KVCache", "Llama", "SharedPrefixCache", "sdpa"]


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
"""Queries, keys, values, mask, causal → what each query takes from the values; as `sdpa` does."""


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in fp32 whatever comes in."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Norm of the last dimension, in the dtype of `x_BSD`."""
        wide_BSD = x_BSD.float()
        scale_BS1 = torch.rsqrt(wide_BSD.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide_BSD * scale_BS1).to(x_BSD.dtype)


class LayerCache:
    """Keys and values of one block, allocated once for the whole context."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.k_BKTE = torch.empty(shape, dtype=dtype, device=device)
        self.v_BKTE = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, k_BKSE: Tensor, v_BKSE: Tensor) -> tuple[Tensor, Tensor]:
        """Take the newest keys and values; return all that are held, as views of the cache."""
        end = self.length + k_BKSE.shape[2]
        self.k_BKTE[:, :, self.length : end] = k_BKSE
        self.v_BKTE[:, :, self.length : end] = v_BKSE
        self.length = end
        return self.k_BKTE[:, :, :end], self.v_BKTE[:, :, :end]


class KVCache:
    """Keys and values of every block for `batch` rows of at most `length` tokens."""

    def __init__(
        self, config: LlamaConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        self.layers = [LayerCache(shape, dtype, device) for _ in range(config.num_hidden_layers)]

    @property
    def length(self) -> int:
        """Tokens held so far."""
        return self.layers[0].length


class SharedLayer:
    """Keys and values, of one block, of what every row of a batch stands behind."""

    def __init__(self, layer: LayerCache) -> None:
        self.k_1KTE, self.v_1KTE = layer.k_BKTE, layer.v_BKTE

    def append(self, k_BKSE: Tensor, v_BKSE: Tensor) -> tuple[Tensor, Tensor]:
        """What is held, and behind it each row's own keys and values, which are not kept."""
        batch = len(k_BKSE)
        k_BKTE = torch.cat((self.k_1KTE.expand(batch, -1, -1, -1), k_BKSE), dim=2)
        v_BKTE = torch.cat((self.v_1KTE.expand(batch, -1, -1, -1), v_BKSE), dim=2)
        return k_BKTE, v_BKTE


class SharedPrefixCache:
    """Keys and values of what every row of a batch begins with; rows read them and leave nothing behind."""

    def __init__(self, cache: KVCache) -> None:
        self.length = cache.length
        self.layers = [SharedLayer(layer) for layer in cache.layers]


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.attend: Attend = sdpa
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, heads, bias=False)
        self.k_proj = nn.Linear(width, shared, bias=False)
        self.v_proj = nn.Linear(width, shared, bias=False)
        self.o_proj = nn.Linear(heads, width, bias=False)

    def forward(
        self,
        x_BSD: Tensor,
        cos_B1SE: Tensor,
        sin_B1SE: Tensor,
        mask_B1ST: Tensor | None,
        cache: LayerCache | SharedLayer | None,
    ) -> Tensor:
        """Causal attention; a mask, where there is one, says all that a query may see."""
        q_BHSE = rotate(self._heads(self.q_proj(x_BSD)), cos_B1SE, sin_B1SE)
        k_BKTE = rotate(self._heads(self.k_proj(x_BSD)), cos_B1SE, sin_B1SE)
        v_BKTE = self._heads(self.v_proj(x_BSD))
        causal = mask_B1ST is None
        if cache is not None:
            k_BKTE, v_BKTE = cache.append(k_BKTE, v_BKTE)
            causal = causal and q_BHSE.shape[2] > 1  # one new token sees all that came before
        out_BHSE = self.attend(q_BHSE, k_BKTE, v_BKTE, mask_B1ST, causal)
        out: Tensor = self.o_proj(out_BHSE.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.view(*x_BSD.shape[:2], -1, self.head_dim).transpose(1, 2)


def sdpa(q_BHSE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask_B1ST: Tensor | None, causal: bool) -> Tensor:
    """Attention as torch has it; heads share keys and values where there are fewer of those."""
    return F.scaled_dot_product_attention(
        q_BHSE,
        k_BKTE,
        v_BKTE,
        attn_mask=mask_B1ST,
        is_causal=causal,
        enable_gqa=q_BHSE.shape[1] != k_BKTE.shape[1],
    )


def rotate(x_BHSE: Tensor, cos_B1SE: Tensor, sin_B1SE: Tensor) -> Tensor:
    """Turn the pairs (i, i + E/2) of each head by its position's angle: HF's half rotation."""
    left, right = x_BHSE.chunk(2, dim=-1)
    return x_BHSE * cos_B1SE + torch.cat((-right, left), dim=-1) * sin_B1SE


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """down(silu(gate(x)) · up(x))."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))
        return out


class Block(nn.Module):
    """Attention and MLP, each after a norm and beside the residual stream. Compiles without a graph break."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BSD: Tensor,
        cos_B1SE: Tensor,
        sin_B1SE: Tensor,
        mask_B1ST: Tensor | None = None,
        cache: LayerCache | SharedLayer | None = None,
    ) -> Tensor:
        """The residual stream after this block."""
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), cos_B1SE, sin_B1SE, mask_B1ST, cache)
        out: Tensor = x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))
        return out


class Decoder(nn.Module):
    """Embedding, blocks and final norm: what HF calls `model`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        # Drawn as nn.Embedding draws; its own way imports torch's compiler, seconds, on the meta device.
        drawn_VD = torch.randn(config.vocab_size, config.hidden_size)
        self.embed_tokens: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            drawn_VD, freeze=False
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """The whole model. Weights are torch's defaults until `init_weights` or a checkpoint fills them."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.lm_head = head

    @property
    def head_weight(self) -> Tensor:
        """The head's weight, (V, D): the embedding's own when tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def blocks(self) -> Iterator[Block]:
        """The blocks in order: what compilation, sharding and checkpointing are applied to."""
        for block in self.model.layers:
            assert isinstance(block, Block)  # noqa: S101 (ModuleList forgets its type)
            yield block

    def init_weights(self, seed: int) -> None:
        """Fill with HF's initialisation: normal matrices of `initializer_range`, norms of one."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.dim() == 1:
                    weight.fill_(1.0)
                else:
                    weight.normal_(0.0, self.config.initializer_range, generator=generator)

    def forward(
        self,
        ids_BS: Tensor,
        *,
        positions_BS: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | SharedPrefixCache | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D) after the final norm; the head is not applied.

        `positions_BS`: positions that restart with each packed document; 0, 1, 2 … when absent, after
        what the cache holds. `mask`: broadcastable to (B, 1, S, T), as `masks.document_mask` makes it;
        causal when absent. `cache`: what stands before `ids_BS`, the first of T; a `KVCache` takes them in,
        a `SharedPrefixCache` stays as it is.
        """
        past = cache.length if cache is not None else 0
        length = ids_BS.shape[1]
        if positions_BS is None:
            positions_BS = torch.arange(past, past + length, device=ids_BS.device)[None]
        if mask is None and past and length > 1:
            mask = torch.ones(length, past + length, dtype=torch.bool, device=ids_BS.device).tril(past)
        x_BSD = self.model.embed_tokens(ids_BS)
        if mask is not None and mask.dtype == torch.bool:
            # SDPA on a CPU would make the same of it, anew in every block.
            mask = torch.zeros_like(mask, dtype=x_BSD.dtype).masked_fill_(~mask, -torch.inf)
        cos_BSE, sin_BSE = rotation(self.config, positions_BS)
        cos_B1SE, sin_B1SE = cos_BSE[:, None].to(x_BSD.dtype), sin_BSE[:, None].to(x_BSD.dtype)
        for index, block in enumerate(self.model.layers):
            layer = cache.layers[index] if cache is not None else None
            x_BSD = block(x_BSD, cos_B1SE, sin_B1SE, mask, layer)
        out: Tensor = self.model.norm(x_BSD)
        return out

    @torch.no_grad()
    def prefill(self, ids_T: Tensor) -> SharedPrefixCache:
        """Read what all rows of the batches to come begin with: the `cache` of their `forward`."""
        weight = self.model.embed_tokens.weight
        cache = KVCache(self.config, 1, len(ids_T), weight.dtype, weight.device)
        self(ids_T[None], cache=cache)
        return SharedPrefixCache(cache)
