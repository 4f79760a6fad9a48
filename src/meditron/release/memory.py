"""Measurement of the peak memory of a block of code, excluding earlier peaks of the process."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PeakMemory", "child_peak_bytes", "measure_peak_memory"]

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # the value that resets VmHWM, by proc(5)


class PeakMemory:
    """The peak memory of a block of code; the values are set when the block ends."""

    bytes = 0
    """The largest resident set during the block, including mapped files."""
    since_start = False
    """True if the kernel did not reset the peak: then `bytes` is the peak of the whole process."""


@contextmanager
def measure_peak_memory() -> Iterator[PeakMemory]:
    """Measure the largest resident set while the block runs (Linux: proc(5), `clear_refs`)."""
    peak = PeakMemory()
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        peak.since_start = True
    yield peak
    peak.bytes = _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return _rusage_bytes(resource.RUSAGE_SELF)


def child_peak_bytes() -> int:
    """Return the largest resident set of the child processes that have ended."""
    return _rusage_bytes(resource.RUSAGE_CHILDREN)


def _rusage_bytes(who: int) -> int:
    # macOS counts bytes, Linux kibibytes.
    peak = resource.getrusage(who).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
