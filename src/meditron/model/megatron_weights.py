"""Reading a checkpoint of Megatron-LLM (epfLLM), the trainer of Meditron-7B and 70B.

Layout, from its `megatron/checkpointing.py` and `weights_conversion/hf_to_megatron.py`: one file for each
rank of tensor (TP) and pipeline parallelism (PP), `release|iter_NNNNNNN/mp_rank_TP[_PPP]/model_optim_rng.pt`.

- Query, key and value are one matrix; its rows are grouped by key/value head: the group's queries, key and
  value.
- Rows of queries and keys are in Meta's order: neighbours (2i, 2i + 1) are rotated, not HF's (i, i + E/2).
- The MLP's up and gate projections are one matrix in each rank: first up, then gate.
- TP splits embedding, head, query_key_value and dense_h_to_4h by rows, the other matrices by columns; norms
  are copies. PP numbers the blocks of each stage from 0.
- The vocabulary is padded to a multiple of 128 · TP.

The files are pickles. They are read with torch's `weights_only` unpickler; every class that they name, except
`argparse.Namespace`, is replaced by an inert one, so no code from a file runs. Tensors are memory-mapped.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from meditron.core.errors import InputError
from meditron.model.config import LlamaConfig
from meditron.model.gguf_weights import from_neighbour_order
from meditron.model.shapes import check_tensors, parameter_shapes
from meditron.store.files import read_json
from meditron.store.models import MEGATRON_TRACKER
from meditron.text.tokenizer import load_tokenizer

__all__ = ["MegatronCheckpoint", "MegatronWeights"]

_RANK = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")
_REFUSED = re.compile(r"unsupported GLOBAL (\S+)")
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")
_NEEDED = ("hidden_size", "ffn_hidden_size", "num_attention_heads")
# Settings of the trainer under which this package's model is another one.
_CONSTANTS = {"glu_activation": "swiglu", "use_rms_norm": True, "parallel_attn": False, "use_bias": False}
_PARTS = {
    "self_attn.o_proj": "attention.dense",
    "mlp.down_proj": "mlp.dense_4h_to_h",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}

Stage = Mapping[str, list[Tensor]]
"""A pipeline stage: name of a tensor → its part in each TP rank."""


class _Inert:
    """Stand-in for a class or function that a file names: it accepts everything and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class MegatronCheckpoint:
    """The files of a checkpoint, by pipeline stage.

    Raises:
        InputError: a rank's file is missing, is damaged, or is not from Megatron-LLM.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _rank_files(folder)
        ranks = [_read_rank(file) for file in self._files.values()]
        self.args: Namespace = ranks[0][1]
        states = dict(zip(self._files, (state for state, _ in ranks), strict=True))
        tensor_ranks, stages = (sorted({rank[axis] for rank in states}) for axis in (0, 1))
        self.stages: list[Stage] = [
            {name: [states[tp, pp][name] for tp in tensor_ranks] for name in self._common_names(states, pp)}
            for pp in stages
        ]

    def _common_names(self, states: Mapping[tuple[int, int], Mapping[str, Tensor]], pp: int) -> list[str]:
        ranks = [rank for rank in states if rank[1] == pp]
        names = states[ranks[0]].keys()
        for rank in ranks[1:]:
            if other := names ^ states[rank].keys():
                raise InputError(self._files[rank], "the ranks have different tensors", place=min(other))
        return list(names)

    @cached_property
    def blocks(self) -> list[tuple[Stage, str]]:
        """The stage of each block, and the prefix of its tensors there."""
        blocks = []
        for stage in self.stages:
            count = len({match[1] for name in stage if (match := _BLOCK.match(name))})
            blocks += [(stage, f"layers.{index}.") for index in range(count)]
        return blocks

    def config(self) -> LlamaConfig:
        """Return the model's config: that of a `config.json` in the folder, else by the trainer's arguments.

        The padded rows of the vocabulary are cut at the size that `config.json` or else the tokenizer in the
        folder has.

        Raises:
            InputError: an argument is missing, or the model is not one that this package has.
        """
        if (path := self.folder / "config.json").is_file():
            return LlamaConfig.from_hf(read_json(path), path)
        fields = self._fields_from_args()
        if any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            size = load_tokenizer(self.folder).vocab_size
            if size > fields["vocab_size"]:
                problem = f"the tokenizer has {size:,} tokens, the embedding {fields['vocab_size']:,} rows"
                raise InputError(self.folder, problem, place="word_embeddings")
            fields["vocab_size"] = size
        return LlamaConfig.from_hf(fields, self.folder)

    def _fields_from_args(self) -> dict[str, Any]:
        """Return the fields of HF's config that the trainer's arguments set."""
        args, file = vars(self.args), next(iter(self._files.values()))
        for name in _NEEDED:
            if type(args.get(name)) is not int:
                raise InputError(file, f"must be a number, got {args.get(name)!r:.60}", place=f"args.{name}")
        for name, constant in _CONSTANTS.items():
            if args.get(name, constant) != constant:
                raise InputError(
                    file, f"{args[name]!r:.60} is not supported; only {constant!r} is", place=f"args.{name}"
                )
        embedding = self.stages[0].get("embedding", [])
        window, factor = args.get("sliding_window_size"), args.get("rope_scaling_factor") or 1.0
        family = "mistral" if window else "llama"
        return {
            "model_type": family,
            "vocab_size": sum(len(part) for part in embedding),
            "hidden_size": args["hidden_size"],
            "intermediate_size": args["ffn_hidden_size"],
            "num_hidden_layers": len(self.blocks),
            "num_attention_heads": args["num_attention_heads"],
            "num_key_value_heads": args.get("num_attention_heads_kv") or args["num_attention_heads"],
            "head_dim": args.get("kv_channels"),
            "max_position_embeddings": args.get("max_position_embeddings") or args.get("seq_length"),
            "rms_norm_eps": args.get("layernorm_epsilon", 1e-5),
            "rope_theta": args.get("rope_theta", 10_000.0),
            "rope_scaling": {"rope_type": "linear", "factor": factor} if factor != 1 else None,
            "tie_word_embeddings": bool(args.get("tie_embed_logits", False)),
            "sliding_window": window,
        }


class MegatronWeights(Mapping[str, Tensor]):
    """Weights by HF's names, in HF's row order and the stored dtype; each access joins one tensor's parts.

    Raises:
        InputError: before a weight is read: a tensor is missing, unexpected or of the wrong shape.
    """

    def __init__(self, checkpoint: MegatronCheckpoint, config: LlamaConfig) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._shapes = parameter_shapes(config)
        self._load: dict[str, Callable[[], Tensor]] = {}
        self._used: set[tuple[int, str]] = set()
        self._plan_outer_weights()
        for index, (stage, prefix) in enumerate(checkpoint.blocks):
            self._plan_block(f"model.layers.{index}.", stage, prefix)
        expected = dict.fromkeys(self._shapes, ())
        check_tensors(checkpoint.folder, expected, dict.fromkeys([*self._load, *self._unused()], ()))

    def _unused(self) -> list[str]:
        """Return the stored tensors that the model lacks, except computed rotary frequencies."""
        return [
            name
            for stage in self._checkpoint.stages
            for name in stage
            if (id(stage), name) not in self._used and not name.endswith("attention.rotary_emb.inv_freq")
        ]

    def _plan_outer_weights(self) -> None:
        first, last = self._checkpoint.stages[0], self._checkpoint.stages[-1]
        for name, stage, stored in (
            ("model.embed_tokens.weight", first, "embedding"),
            ("model.norm.weight", last, "final_layernorm.weight"),
            ("lm_head.weight", last, "lm_head"),
        ):
            if parts := self._parts(stage, stored):
                join = partial(self._norm, parts) if "norm" in stored else partial(self._vocabulary, parts)
                self._load[name] = join

    def _plan_block(self, name: str, stage: Stage, prefix: str) -> None:
        config = self._config
        if qkv := self._parts(stage, f"{prefix}attention.query_key_value.weight"):
            for place, part in enumerate("qkv"):
                self._load[f"{name}self_attn.{part}_proj.weight"] = partial(_projection, qkv, place, config)
        if up_and_gate := self._parts(stage, f"{prefix}mlp.dense_h_to_4h.weight"):
            for place, part in enumerate(("up", "gate")):
                self._load[f"{name}mlp.{part}_proj.weight"] = partial(_half_of_rows, up_and_gate, place)
        for part, stored in _PARTS.items():
            if parts := self._parts(stage, f"{prefix}{stored}.weight"):
                join = self._norm if parts[0].dim() == 1 else partial(torch.cat, dim=1)
                self._load[f"{name}{part}.weight"] = partial(join, parts)

    def _parts(self, stage: Stage, stored: str) -> list[Tensor]:
        self._used.add((id(stage), stored))
        return stage.get(stored, [])

    def _vocabulary(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[: self._config.vocab_size]

    def _norm(self, parts: list[Tensor]) -> Tensor:
        return parts[0]

    def __getitem__(self, name: str) -> Tensor:
        """Read a weight; InputError if its shape is not the config's."""
        try:
            weight = self._load[name]()
        except RuntimeError as error:  # the parts do not have the shape of such a matrix
            raise InputError(self._checkpoint.folder, f"cannot be joined: {error}", place=name) from error
        if tuple(weight.shape) != self._shapes[name]:
            problem = f"has shape {tuple(weight.shape)}, but the config gives {self._shapes[name]}"
            raise InputError(self._checkpoint.folder, problem, place=name)
        return weight

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the model's order."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """Return the number of weights."""
        return len(self._shapes)


def _projection(ranks: list[Tensor], place: int, config: LlamaConfig) -> Tensor:
    """Take the queries (place 0), keys (1) or values (2) out of the grouped rows of every rank."""
    queries, width = config.num_attention_heads // config.num_key_value_heads, config.head_dim
    rows = slice(0, queries) if place == 0 else slice(queries + place - 1, queries + place)
    grouped = [rank.reshape(-1, queries + 2, width, rank.shape[1])[:, rows] for rank in ranks]
    weight = torch.cat([part.reshape(-1, part.shape[-1]) for part in grouped])
    return from_neighbour_order(weight, None if place == 2 else len(weight) // width)


def _half_of_rows(ranks: list[Tensor], place: int) -> Tensor:
    return torch.cat([rank.chunk(2)[place] for rank in ranks])


def _rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """Return the model file of each rank (TP, PP)."""
    tracker, base = folder / MEGATRON_TRACKER, folder
    if tracker.is_file():
        iteration = tracker.read_text(encoding="utf-8", errors="replace").strip()
        if iteration != "release" and not (iteration.isdecimal() and len(iteration) <= 9):
            raise InputError(tracker, f"must be a number or 'release', got {iteration!r:.60}")
        base = folder / (iteration if iteration == "release" else f"iter_{int(iteration):07d}")
    files = {
        (int(match[1]), int(match[2] or 0)): file
        for rank in sorted(base.glob("mp_rank_*"))
        if (match := _RANK.fullmatch(rank.name))
        # The second name is that of runs with the distributed optimizer, whose state is in other files.
        for file in (rank / "model_optim_rng.pt", rank / "model_rng.pt")
        if file.is_file()
    }
    if not files:
        raise InputError(base, "there is no mp_rank_NN/model_optim_rng.pt")
    tensor_ranks, stages = (range(max(rank[axis] for rank in files) + 1) for axis in (0, 1))
    for tp in tensor_ranks:
        for pp in stages:
            if (tp, pp) not in files:
                problem = f"the file of tensor rank {tp} and pipeline stage {pp} is missing"
                raise InputError(base, problem, hint="copy the files of all ranks")
    return dict(sorted(files.items()))


def _read_rank(file: Path) -> tuple[dict[str, Tensor], Namespace]:
    """Return a rank's tensors, under the names of the `release` layout, and the trainer's arguments."""
    hint = "the file may be incomplete: copy it again"
    try:
        named = [name for name in get_unsafe_globals_in_checkpoint(file) if name != "argparse.Namespace"]
        stubs = [(type("Inert", (_Inert,), {}), name) for name in named]
        with safe_globals([Namespace, *stubs]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        # torch's own message advises to load the file with its code.
        if refused := _REFUSED.search(str(error)):
            raise InputError(
                file, f"names {refused[1]}, which could run code; the file is not read"
            ) from error
        problem = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(file, f"cannot be read as a checkpoint: {problem}", hint=hint) from error
    if isinstance(content, dict) and "model0" in content:
        raise InputError(
            file, "interleaved pipeline stages are not supported", place="model0", hint="merge the stages"
        )
    model = content.get("model") if isinstance(content, dict) else None
    language = model.get("language_model") if isinstance(model, dict) else None
    args = content.get("args") if isinstance(content, dict) else None
    if not isinstance(language, dict) or not isinstance(args, Namespace):
        raise InputError(file, "not a checkpoint of Megatron-LLM", place="model.language_model")
    return _named_tensors(file, language), args


def _named_tensors(file: Path, language: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of both layouts, `release` and training, under the names of the first."""
    embedding, blocks = language.get("embedding") or {}, language.get("transformer", language.get("encoder"))
    words = embedding.get("word_embeddings.weight")
    if words is None and isinstance(nested := embedding.get("word_embeddings"), dict):
        words = nested.get("weight")
    if "position_embeddings" in embedding:
        raise InputError(file, "absolute positions are not supported", place="embedding.position_embeddings")
    tensors = {
        name.replace("self_attention.", "attention."): weight for name, weight in (blocks or {}).items()
    }
    tensors |= {"embedding": words, "lm_head": language.get("lm_head")}
    tensors = {name: weight for name, weight in tensors.items() if weight is not None}
    for name, weight in tensors.items():
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise InputError(file, "is not a tensor of floating-point numbers", place=name)
    return tensors
