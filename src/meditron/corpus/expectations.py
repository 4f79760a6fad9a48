"""Comparison of a corpus with the sizes that its recipe expects of the sources."""

from collections.abc import Mapping
from typing import Any

from meditron.core.console import warn

__all__ = ["compare_sizes"]

_TOLERANCE = 0.1


def compare_sizes(
    expected: Mapping[str, int], built: Mapping[str, int], unit: str
) -> dict[str, dict[str, Any]]:
    """Return source → `expected`, `built` and `ratio`, and warn of each source that is more than a tenth off.

    Args:
        expected: Source → expected number.
        built: Source → number that was built; a source without one counts as 0.
        unit: What is counted: `documents`.
    """
    sizes = {}
    for source, number in expected.items():
        ratio = built.get(source, 0) / number
        sizes[source] = {"expected": number, "built": built.get(source, 0), "ratio": ratio}
        if abs(ratio - 1) > _TOLERANCE:
            warn(f"source '{source}' has {built.get(source, 0):,} {unit}, {ratio:.1%} of {number:,} expected")
    return sizes
