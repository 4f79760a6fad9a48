"""Agreement between the ranks of a job: small Python values gathered from all of them, errors included."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch.distributed as dist

from meditron.core.errors import LostRankError, MeditronError, TrainingError

__all__ = ["RankGroup"]

T = TypeVar("T")

# A rank waits here while the slowest one writes or hashes its files, which takes long on a shared disk; a
# rank that has died is noticed at once.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class RankGroup:
    """All ranks of a job, or the one process of a job without ranks.

    The group has its own gloo connections: its messages pass on a CPU while the training uses NCCL or its own
    gloo group, and may be sent from another thread than the training's.
    """

    rank: int
    size: int
    group: "dist.ProcessGroup | None" = None

    @classmethod
    def of_job(cls) -> "RankGroup":
        """Connect all ranks of the job; every rank must call this in the same order as other collectives."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1)
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        return cls(dist.get_rank(), dist.get_world_size(), cast("dist.ProcessGroup", group))

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order; each value must be picklable.

        Raises:
            LostRankError: Another rank ended.
        """
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            raise LostRankError(
                f"another rank does not answer: {_first_line(error)}",
                hint="the cause is the error of that rank; the same command resumes",
            ) from error
        return cast("list[T]", values)

    def agree(self, work: Callable[[], T]) -> T:
        """Call `work` on all ranks and return this rank's result, if it succeeded on all of them.

        Raises:
            MeditronError: `work` failed on a rank; all ranks raise the error of the lowest such rank. An
                error of another class is raised as a TrainingError that names the rank.
        """
        result: T | None = None
        error: MeditronError | None = None
        try:
            result = work()
        except MeditronError as raised:
            error = raised
        except Exception as raised:  # any error, because the other ranks wait for an outcome
            error = TrainingError(
                f"rank {self.rank}: {type(raised).__name__}: {_first_line(raised)}",
                hint="the same command resumes",
            )
            error.__cause__ = raised
        for rank, failure in enumerate(self.gather(error)):
            if failure is not None:
                # The rank that failed raises the original, which has a traceback.
                raise error if error is not None and rank == self.rank else failure
        return cast("T", result)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
