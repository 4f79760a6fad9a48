"""Rounds of reading under a limit."""

from meditron.corpus.reading import SourceProgress


def rounds(documents: list[int], limit: int) -> list[int]:
    """Return the number of groups read in each round, for groups with these numbers of documents."""
    progress = SourceProgress(numbers=list(range(len(documents))))
    sizes = []
    while numbers := progress.next(limit):
        sizes.append(len(numbers))
        for number in numbers:
            progress.results.append(None)  # type: ignore[arg-type]
            progress.documents += min(documents[number], limit)
    return sizes


def test_a_limit_needs_few_rounds() -> None:
    assert rounds([500] * 100, 100) == [1]
    assert rounds([500] * 100, 500) == [1]
    assert rounds([500] * 100, 20_000) == [1, 39]
    assert rounds([500] * 100, 10**9) == [1, 99]
    assert rounds([0] * 40, 5) == [1, 1, 2, 4, 8, 16, 8]  # groups without documents double the next round
    sizes = rounds([500, *[5] * 1_000], 1_000)
    assert (sum(sizes), len(sizes) < 20) == (101, True)
