"""Division of an evaluation over the ranks of a job.

A group of questions or documents is computed by one rank exactly as in one process, so the rows are the same
for any number of ranks. Each rank takes the next group from a counter that all share: a slow rank takes fewer
groups, and no group is taken twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from meditron.parallel.world import connect, current_world, open_store

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from meditron.parallel.rank_group import RankGroup

__all__ = ["ONE_RANK", "EvalRanks"]

T = TypeVar("T")
_TIMEOUT = 1800.0  # seconds until all ranks have connected


@dataclass
class EvalRanks:
    """The ranks of an evaluation, as one of them uses them. All make the same calls in the same order."""

    rank: int = 0
    size: int = 1
    _group: "RankGroup | None" = None
    _store: "Store | None" = None
    _job: str = ""
    _divided: int = field(default=0, init=False)

    @classmethod
    def of_job(cls) -> "EvalRanks":
        """Connect the ranks of this job; one process needs no connection, and no torch.

        Raises:
            UsageError: the variables of the job are wrong, or there are fewer GPUs than ranks.
            EngineError: rank 0 does not answer.
        """
        world = current_world()
        if world.size == 1:
            return ONE_RANK
        from meditron.parallel.rank_group import RankGroup

        connect(_TIMEOUT)
        group = RankGroup.of_job()
        # One store serves all evaluations of a run, so each has counters of its own.
        job = group.gather(uuid4().hex)[0]
        return cls(world.rank, world.size, group, open_store(_TIMEOUT), job)

    @property
    def is_main(self) -> bool:
        """True for the rank that writes the results."""
        return self.rank == 0

    def divide(self, count: int) -> Iterator[int]:
        """Yield the numbers below `count` that this rank takes: over all ranks each number once."""
        if self._store is None:
            yield from range(count)
            return
        self._divided += 1
        counter = f"evaluation/{self._job}/{self._divided}"
        while (number := self._store.add(counter, 1) - 1) < count:
            yield number

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order; TrainingError if another rank has ended."""
        return [value] if self._group is None else self._group.gather(value)

    def from_main(self, value: T | None) -> T:
        """Return rank 0's value on all ranks; the others' values are ignored."""
        first: T = self.gather(value if self.is_main else None)[0]  # type: ignore[assignment]  # rank 0 has one
        return first


ONE_RANK = EvalRanks()
"""One process that does the whole work."""
