"""Llama (Touvron et al. 2023), Mistral, Qwen2 and Qwen3 in plain torch, under HF's parameter names.

The families differ in biases and in a norm of queries and keys only; see `meditron.model.families`.

The model contains no code for parallelism, dtype, device or compilation: those are applied from outside,
block by block. Masks, positions and caches are created on the device of the tensors that they are used with.

Shapes: B batch, S sequence of queries, T sequence of keys, D width, H heads, K key/value heads, E head width,
V vocabulary, F width of the MLP.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meditron.model.config import LlamaConfig
from meditron.model.rope import rotary_cos_sin

__all__ = ["Block", "KVCache", "Llama", "SharedPrefixCache", "document_mask", "sdpa"]


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
"""An attention function with the arguments and the result of `sdpa`."""


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in fp32, or in fp64 for an fp64 input."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Normalize the last dimension; the result has the dtype of `x_BSD`."""
        # In bfloat16 the mean of squares would have only 8 significant bits. The weight is multiplied after
        # the cast, as in HF.
        wide_BSD = x_BSD.to(torch.promote_types(x_BSD.dtype, torch.float32))
        scale_BS1 = torch.rsqrt(wide_BSD.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide_BSD * scale_BS1).to(x_BSD.dtype)


class LayerCache:
    """Keys and values of one block."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kv: tuple[Tensor, Tensor] | None = None
        self.length = 0
        """Number of cached tokens."""

    def append(self, k_BKSE: Tensor, v_BKSE: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens and return all of them, as views of the cache."""
        if self._kv is None:
            # Allocated once, for the whole capacity: growing would copy the cache at every token. Batch,
            # heads, dtype and device come from the first keys, so that a block with fewer heads (tensor
            # parallel) or on another device needs no setting.
            batch, heads, _, width = k_BKSE.shape
            shape = (batch, heads, self._capacity, width)
            self._kv = k_BKSE.new_empty(shape), v_BKSE.new_empty(shape)
        end = self.length + k_BKSE.shape[2]
        for cached_BKTE, new_BKSE in zip(self._kv, (k_BKSE, v_BKSE), strict=True):
            cached_BKTE[:, :, self.length : end] = new_BKSE
        self.length = end
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Return the cached keys and values."""
        assert self._kv is not None  # noqa: S101  # `append` comes first
        k_BKTE, v_BKTE = self._kv
        return k_BKTE[:, :, : self.length], v_BKTE[:, :, : self.length]

    def select_rows(self, rows_B: Tensor) -> None:
        """Keep only the given rows of the batch."""
        if self._kv is not None:
            k_BKTE, v_BKTE = self._kv
            self._kv = k_BKTE[rows_B], v_BKTE[rows_B]


class KVCache:
    """Keys and values of every block, for at most `capacity` tokens of each row.

    Memory: 2 · blocks · K · E · batch · capacity numbers, allocated at the first forward pass.
    """

    def __init__(self, blocks: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(blocks)]

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return self.layers[0].length

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`; their memory is reused."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def select_rows(self, rows: Sequence[int], device: torch.device) -> None:
        """Keep only the given rows of the batch; a row that is given several times is copied."""
        rows_B = torch.tensor(rows, device=device)
        for layer in self.layers:
            layer.select_rows(rows_B)


class SharedPrefixLayer:
    """Keys and values, in one block, of a prefix that all rows of a batch share."""

    def __init__(self, layer: LayerCache) -> None:
        self._k_1KTE, self._v_1KTE = layer.keys_and_values()

    def append(self, k_BKSE: Tensor, v_BKSE: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prefix's keys and values followed by each row's own; the cache does not change."""
        # The copies exist during one block only, so they take the memory of one layer and not of all layers.
        batch = len(k_BKSE)
        k_BKTE = torch.cat((self._k_1KTE.expand(batch, -1, -1, -1), k_BKSE), dim=2)
        v_BKTE = torch.cat((self._v_1KTE.expand(batch, -1, -1, -1), v_BKSE), dim=2)
        return k_BKTE, v_BKTE


class SharedPrefixCache:
    """Read-only KV cache of a prefix shared by all rows: the tokens that a one-row `KVCache` has now.

    The cache is a view: it is valid until tokens before `length` are overwritten in the `KVCache`.
    """

    def __init__(self, cache: KVCache) -> None:
        self.length = cache.length
        self.layers = [SharedPrefixLayer(layer) for layer in cache.layers]


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.attend: Attend = sdpa
        width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        bias, qk_norm = config.family.qkv_bias, config.family.qk_norm
        self.q_proj = nn.Linear(width, heads, bias=bias)
        self.k_proj = nn.Linear(width, shared, bias=bias)
        self.v_proj = nn.Linear(width, shared, bias=bias)
        self.o_proj = nn.Linear(heads, width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if qk_norm else nn.Identity()

    def forward(
        self,
        x_BSD: Tensor,
        cos_B1SE: Tensor,
        sin_B1SE: Tensor,
        mask_B1ST: Tensor | None,
        cache: LayerCache | SharedPrefixLayer | None,
    ) -> Tensor:
        """Compute attention: causal, or over the keys that the mask allows if there is one."""
        q_BHSE = rotate(self.q_norm(self._split_heads(self.q_proj(x_BSD))), cos_B1SE, sin_B1SE)
        k_BKTE = rotate(self.k_norm(self._split_heads(self.k_proj(x_BSD))), cos_B1SE, sin_B1SE)
        v_BKTE = self._split_heads(self.v_proj(x_BSD))
        causal = mask_B1ST is None
        if cache is not None:
            k_BKTE, v_BKTE = cache.append(k_BKTE, v_BKTE)
            # A single new token sees all cached ones; SDPA's causal flag would hide all but the first.
            causal = causal and q_BHSE.shape[2] > 1
        out_BHSE = self.attend(q_BHSE, k_BKTE, v_BKTE, mask_B1ST, causal)
        out: Tensor = self.o_proj(out_BHSE.transpose(1, 2).flatten(2))
        return out

    def _split_heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.view(*x_BSD.shape[:2], -1, self.head_dim).transpose(1, 2)


def sdpa(q_BHSE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask_B1ST: Tensor | None, causal: bool) -> Tensor:
    """Compute torch's scaled dot-product attention; K may be a divisor of H (grouped-query attention)."""
    return F.scaled_dot_product_attention(
        q_BHSE,
        k_BKTE,
        v_BKTE,
        attn_mask=mask_B1ST,
        is_causal=causal,
        enable_gqa=q_BHSE.shape[1] != k_BKTE.shape[1],
    )


def rotate(x_BHSE: Tensor, cos_B1SE: Tensor, sin_B1SE: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of each head by the angle of its position: HF's half rotation."""
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
        """Compute down(silu(gate(x)) · up(x))."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))
        return out


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to the residual stream.

    Compiles without a graph break.
    """

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
        cache: LayerCache | SharedPrefixLayer | None = None,
    ) -> Tensor:
        """Return the residual stream after this block."""
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), cos_B1SE, sin_B1SE, mask_B1ST, cache)
        out: Tensor = x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))
        return out


class Decoder(nn.Module):
    """Embedding, blocks and final norm: HF's `model`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        # nn.Embedding's own initialization imports torch's compiler on the meta device, which takes seconds.
        drawn_VD = torch.randn(config.vocab_size, config.hidden_size)
        self.embed_tokens: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            drawn_VD, freeze=False
        )
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A Llama. Weights have torch's default values until `init_weights` or a checkpoint fills them."""

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
        """The head's weight, (V, D); the embedding's if they are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def blocks(self) -> Iterator[Block]:
        """Iterate over the blocks: the units of compilation, sharding and activation checkpointing."""
        # `children`, because a pipeline stage has some of the blocks only, in a dict by their numbers.
        for block in self.model.layers.children():
            assert isinstance(block, Block)  # noqa: S101 (ModuleList forgets its type)
            yield block

    def init_weights(self, seed: int) -> None:
        """Initialize as HF does: normal matrices of `initializer_range`, norms of one, biases of zero."""
        # Weights are drawn on the CPU, so that a seed gives the same weights on every device.
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() == 1:
                    weight.fill_(0.0 if name.endswith(".bias") else 1.0)
                else:
                    drawn = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                    weight.copy_(drawn.normal_(0.0, self.config.initializer_range, generator=generator))

    def forward(
        self,
        ids_BS: Tensor,
        *,
        positions_BS: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | SharedPrefixCache | None = None,
    ) -> Tensor:
        """Compute hidden states (B, S, D) after the final norm; the head is not applied.

        Args:
            ids_BS: Token ids.
            positions_BS: Positions, which restart with each document of a packed row; when absent 0, 1, 2 …
                after the tokens in the cache.
            mask: Broadcastable to (B, 1, S, T), bool (true = visible) or additive; causal when absent.
            cache: Keys and values of the tokens before `ids_BS`, the first of T. The new tokens are appended
                to a `KVCache`; a `SharedPrefixCache` does not change.
        """
        past = cache.length if cache is not None else 0
        length = ids_BS.shape[1]
        if positions_BS is None:
            positions_BS = torch.arange(past, past + length, device=ids_BS.device)[None]
        if mask is None and past and length > 1:
            mask = torch.ones(length, past + length, dtype=torch.bool, device=ids_BS.device).tril(past)
        out: Tensor = self.model.norm(
            self.run_blocks(self.model.embed_tokens(ids_BS), positions_BS, mask, cache)
        )
        return out

    def run_blocks(
        self,
        x_BSD: Tensor,
        positions_BS: Tensor,
        mask: Tensor | None,
        cache: KVCache | SharedPrefixCache | None = None,
    ) -> Tensor:
        """Return the residual stream after the blocks; the arguments are those of `forward`."""
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            # SDPA on a CPU would convert a bool mask to this additive mask in every block.
            mask = torch.zeros_like(mask, dtype=x_BSD.dtype).masked_fill_(~mask, -torch.inf)
        # Angles are computed in fp32 and cast at the end: in bfloat16, positions above 256 would not be
        # distinct.
        cos_BSE, sin_BSE = rotary_cos_sin(self.config, positions_BS)
        cos_B1SE, sin_B1SE = cos_BSE[:, None].to(x_BSD.dtype), sin_BSE[:, None].to(x_BSD.dtype)
        for index, block in enumerate(self.model.layers.children()):
            layer = cache.layers[index] if cache is not None else None
            x_BSD = block(x_BSD, cos_B1SE, sin_B1SE, mask, layer)
        return x_BSD


def document_mask(document_ids_BS: Tensor) -> Tensor | None:
    """Return the SDPA mask of packed rows, bool (B, 1, S, S): causal, and within a document only.

    Args:
        document_ids_BS: The document of each token; a document's tokens are contiguous.

    Returns:
        The mask, or None if each row is a single document: plain causal attention is faster and gives the
        same result.
    """
    if bool((document_ids_BS == document_ids_BS[:, :1]).all()):
        return None
    same_BST = document_ids_BS[:, :, None] == document_ids_BS[:, None, :]
    return same_BST.tril()[:, None]
