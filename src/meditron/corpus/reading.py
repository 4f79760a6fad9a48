"""The reading of all groups of files: all at once, or as many as a source's limit needs.

With a limit, the groups of a source are read in rounds. The next round has as many groups as the mean number
of documents in the groups read so far suggests. It depends on the data alone, so that any number of workers
reads the same files, and finds the same damage in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meditron.corpus.execute import execute_tasks
from meditron.corpus.files import FileGroup, member_skip_rule
from meditron.corpus.pieces import GroupResult, ReadGroupTask
from meditron.sources.registry import SOURCES, find_source_format

__all__ = ["SourceProgress", "read_groups"]


def read_groups(task: ReadGroupTask, folder: Path) -> tuple[GroupResult, ...]:
    """Read the groups of files, and return the results of those that were read, in the order of the groups.

    Args:
        task: The task that reads a group.
        folder: Folder of the tasks' descriptions and logs (`execute_tasks`).
    """
    config, groups = task.config, task.groups
    if config.limit is None:
        execute_tasks("read", task, range(len(groups)), config, folder)
        return tuple(GroupResult.load(group, task.work_folder) for group in groups)
    sources: dict[str, SourceProgress] = {}
    for number, group in enumerate(groups):
        sources.setdefault(group.source, SourceProgress()).numbers.append(number)
    for progress in sources.values():
        # A file that may delete documents of other files is read, wherever it is.
        progress.all = _declares_deletions(task, groups[progress.numbers[0]])
    while numbers := [number for progress in sources.values() for number in progress.next(config.limit)]:
        execute_tasks("read", task, numbers, config, folder)
        for number in numbers:
            group = groups[number]
            sources[group.source].add(GroupResult.load(group, task.work_folder))
    return tuple(result for progress in sources.values() for result in progress.results)


@dataclass
class SourceProgress:
    """The groups of one source, and what is read of them."""

    numbers: list[int] = field(default_factory=list)
    """Numbers of its groups, in order."""
    results: list[GroupResult] = field(default_factory=list)
    """Results of the first groups."""
    documents: int = 0
    """Number of documents in them."""
    all: bool = False
    """True if the limit does not end the reading."""

    def next(self, limit: int) -> Sequence[int]:
        """Return the numbers of the groups of the next round; none if the source has enough documents."""
        done, missing = len(self.results), limit - self.documents
        if self.all:
            return self.numbers[done:]
        if not done:
            return self.numbers[:1]
        if missing <= 0:
            return ()
        # Rounded up. Groups without documents double the next round.
        count = -(-missing * done // self.documents) if self.documents else done
        return self.numbers[done : done + count]

    def add(self, result: GroupResult) -> None:
        """Add the result of the next group."""
        self.results.append(result)
        self.documents += result.count_documents()


def _declares_deletions(task: ReadGroupTask, group: FileGroup) -> bool:
    source, file = task.config.sources[group.source], group.files[0]
    if source.format is not None:
        return SOURCES[source.format].declares_deletions
    return find_source_format(file.path, skip=member_skip_rule(source, file.name)).declares_deletions
