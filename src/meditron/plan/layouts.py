"""Layouts of a training on a cluster: which are possible, and which are fastest."""

from collections.abc import Iterator

from meditron.core.units import format_bytes
from meditron.parallel.config import ActivationCheckpointing
from meditron.parallel.constraints import LayoutProblem
from meditron.parallel.constraints import layout_problems as parallel_problems
from meditron.parallel.shapes import LayoutShape, attention_ranks
from meditron.plan.cluster import Cluster, with_nodes
from meditron.plan.prediction import MEMORY_SHARE, Job, Prediction, predict

__all__ = [
    "layout_notes",
    "layout_problems",
    "memory_problem",
    "nodes_that_fit",
    "suggest_layouts",
]

_CHECKPOINTING: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")
_MOST_MICRO_BATCH = 16
_MOST_PIPELINE = 32
_MOST_NODES = 4096


def layout_problems(
    job: Job, cluster: Cluster, layout: LayoutShape, micro: int | None
) -> list[LayoutProblem]:
    """Return the reasons why a layout is impossible on a cluster, memory aside; none if it is possible.

    Apart from the cluster's size, a training refuses exactly the same layouts.
    """
    problems: list[LayoutProblem] = []
    if layout.ranks > cluster.gpus:
        problems.append(
            LayoutProblem(
                f"the layout has {layout.ranks} ranks ({layout.sizes}), but the cluster has "
                f"{cluster.gpus} GPUs",
                "lower one of the sizes, or use a cluster with more nodes (--nodes)",
            )
        )
    problems += parallel_problems(
        job.config,
        layout,
        sequence_length=job.sequence_length,
        batch_size=job.batch_size,
        micro_batch_size=micro,
    )
    return problems


def layout_notes(job: Job, cluster: Cluster, layout: LayoutShape) -> Iterator[str]:
    """Yield remarks about a layout that is possible but not best."""
    if layout.ranks < cluster.gpus:
        yield (
            f"the layout uses {layout.ranks} of the cluster's {cluster.gpus} GPUs; "
            "hours, cost and carbon are those of the used ones"
        )
    if layout.tp > cluster.gpus_per_node:
        yield (
            f"tp {layout.tp} is larger than a node ({cluster.gpus_per_node} GPUs): "
            "its collectives cross the network in every block"
        )
    heads, kv_heads = job.config.num_attention_heads, job.config.num_key_value_heads
    if attention_ranks(heads, kv_heads, layout.tp) < layout.tp:
        yield (
            f"tp {layout.tp} does not divide {heads} heads and {kv_heads} key/value heads: every rank "
            "computes the whole attention"
        )
    if masked := -job.batch_size % layout.data_ranks:
        yield (
            f"batch_size {job.batch_size} is not a multiple of {layout.data_ranks} data-parallel ranks: in "
            f"every step they also compute {masked} samples without targets"
        )


def memory_problem(prediction: Prediction, cluster: Cluster) -> LayoutProblem:
    """Return the problem of a layout that needs more memory than a GPU has."""
    # The largest part decides the advice: the others are not worth a change.
    part, size = max(prediction.memory._asdict().items(), key=lambda item: item[1])
    hints = {
        "activations": "lower micro_batch_size, or set activation_checkpointing to selective or full",
        "logits": "lower micro_batch_size, or raise tp",
        "communication": "raise tp or pp",
    }
    return LayoutProblem(
        f"a GPU needs {format_bytes(prediction.memory.total)}, but can use "
        f"{format_bytes(cluster.memory_bytes * MEMORY_SHARE)} "
        f"({MEMORY_SHARE:.0%} of {format_bytes(cluster.memory_bytes)})",
        f"most of it are {part} ({format_bytes(size)}): "
        + hints.get(part, "raise dp_shard, tp or pp, or use more GPUs"),
    )


def suggest_layouts(job: Job, cluster: Cluster, count: int = 3) -> list[Prediction]:
    """Return the fastest layouts that fit on all GPUs, at most one per combination of sizes."""
    best: dict[tuple[int, ...], Prediction] = {}
    for layout in _candidates(job, cluster):
        fitting = _fastest_fitting(job, cluster, layout)
        key = (layout.dp_replicate * layout.dp_shard, layout.tp, layout.pp)
        if fitting and (key not in best or fitting.tokens_per_second > best[key].tokens_per_second):
            best[key] = fitting
    return sorted(best.values(), key=lambda prediction: -prediction.tokens_per_second)[:count]


def nodes_that_fit(job: Job, cluster: Cluster) -> int | None:
    """Return the number of nodes, doubled until a layout fits; None if none does."""
    nodes = cluster.nodes * 2
    while nodes <= _MOST_NODES:
        if suggest_layouts(job, with_nodes(cluster, nodes), 1):
            return nodes
        nodes *= 2
    return None


def _candidates(job: Job, cluster: Cluster) -> Iterator[LayoutShape]:
    """Yield layouts of all GPUs: tp within a node, and shards over all ranks or within a node."""
    for tp in _divisors(cluster.gpus_per_node):
        for pp in _divisors(cluster.gpus // tp):
            if pp > min(_MOST_PIPELINE, job.config.num_hidden_layers):
                continue
            data_ranks = cluster.gpus // (tp * pp)
            inside = max(size for size in _divisors(data_ranks) if size * tp <= cluster.gpus_per_node)
            schedules = ("1f1b",) if pp == 1 else ("1f1b", "interleaved")
            # Shards over the network save memory; shards within a node save communication.
            for shards in {data_ranks, inside}:
                for schedule in schedules:
                    yield LayoutShape(data_ranks // shards, shards, tp, pp, schedule)


def _fastest_fitting(job: Job, cluster: Cluster, layout: LayoutShape) -> Prediction | None:
    fastest = None
    for micro in _divisors(layout.divide_batch(job.batch_size, job.batch_size).micro_batch_size):
        if micro > _MOST_MICRO_BATCH or layout_problems(job, cluster, layout, micro):
            continue
        # More recomputation is slower, so the first that fits is the fastest.
        for checkpointing in _CHECKPOINTING:
            prediction = predict(job, cluster, layout, micro, checkpointing)
            if prediction.fits(cluster):
                if fastest is None or prediction.tokens_per_second > fastest.tokens_per_second:
                    fastest = prediction
                break
    return fastest


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
