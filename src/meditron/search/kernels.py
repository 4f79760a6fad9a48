"""Compilation of numerical loops with numba."""

from collections.abc import Callable
from pickle import UnpicklingError  # an error of numba's cache; nothing is pickled here
from typing import Any, TypeVar

from meditron.core.errors import MissingExtra

try:
    import numba
except ImportError as missing:
    raise MissingExtra("numba", "corpus") from missing

__all__ = ["compiled"]

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# A cache without a writable folder, on a full disk, or truncated by a power cut.
_CACHE_ERRORS = (RuntimeError, OSError, EOFError, UnpicklingError)


def compiled(*signatures: str) -> Callable[[Kernel], Kernel]:
    """Return a decorator that compiles a function for the given numba signatures when its module is imported.

    Without signatures it is compiled on its first call, for the types of that call's arguments. The machine
    code is cached beside the module, or in the user's cache folder if the package's folder is read-only: the
    first import takes seconds, later ones milliseconds. numba writes cache files under a temporary name and
    renames them, and their key contains the processor's name and features, so parallel processes can share a
    cache. Without a usable cache the function is compiled in every process.
    """

    def compile_function(function: Kernel) -> Kernel:
        try:
            kernel: Kernel = numba.njit(list(signatures) or None, cache=True)(function)
        except _CACHE_ERRORS:
            kernel = numba.njit(list(signatures) or None)(function)
        return kernel

    return compile_function
