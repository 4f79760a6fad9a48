"""llama.cpp's own quantizer as the reference: `llama_model_quantize` of its shared library, in a child.

MEDITRON_LLAMA_CPP names the folder of libllama*.so and libggml*.so. The parameters' layout is the one of
llama.cpp 0.5.0 (2026); an assertion fails for another library's defaults.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

VARIABLE = "MEDITRON_LLAMA_CPP"
HOW = (
    f"{VARIABLE} names no folder with llama.cpp's libllama*.so: "
    "npm pack @node-llama-cpp/linux-x64@3.22.1, unpack, its bins/linux-x64 is one"
)


class Parameters(ctypes.Structure):
    """`llama_model_quantize_params`."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        *((name, ctypes.c_int) for name in ("ftype", "output_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in ("requantize", "output", "copy", "pure", "split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "overrides", "types", "prune")),
    ]


def folder() -> Path | None:
    """Return the folder of llama.cpp's libraries; None if the variable names none."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named and any(Path(named).glob("libllama*.so")) else None


class Imatrix(ctypes.Structure):
    """`llama_model_imatrix_data`: the importance of a matrix's columns; the last of an array has no name."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


def quantize(
    source: Path, target: Path, file_type: int, *, threads: int = 1, imatrix: Path | None = None
) -> None:
    """Quantize an F32 or F16 file with llama.cpp into `target`, of the type with this number.

    `imatrix` is an `.npz` file with the importance of each matrix's columns.
    """
    words = [str(folder()), str(source), str(target), str(file_type), str(threads), str(imatrix or "")]
    ran = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, timeout=600)
    if ran.returncode:
        raise RuntimeError(f"llama.cpp: {ran.stderr[-2000:]}")


def _library(where: Path) -> ctypes.CDLL:
    for pattern in ("libggml-base*.so", "libggml.*so"):
        base = ctypes.CDLL(str(next(where.glob(pattern))), ctypes.RTLD_GLOBAL)
    base.ggml_backend_load_all_from_path(str(where).encode())
    return ctypes.CDLL(str(next(path for path in where.glob("libllama*.so") if "common" not in path.name)))


def _load_imatrix(path: str) -> tuple[Any, list[Any]]:
    """Return llama.cpp's array of importances, and the arrays that must stay alive."""
    columns = {name: np.ascontiguousarray(values, np.float32) for name, values in np.load(path).items()}
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [
        Imatrix(name.encode(), values.ctypes.data_as(pointer), values.size)
        for name, values in columns.items()
    ]
    return (Imatrix * (len(entries) + 1))(*entries, Imatrix(None, None, 0)), [columns]


def _main(where: str, source: str, target: str, file_type: str, threads: str, imatrix: str) -> None:
    library = _library(Path(where))
    library.llama_model_quantize_default_params.restype = Parameters
    parameters = library.llama_model_quantize_default_params()
    assert parameters.output, "unknown layout of llama_model_quantize_params"
    assert not any((parameters.requantize, parameters.copy, parameters.pure, parameters.imatrix))
    parameters.ftype, parameters.nthread = int(file_type), int(threads)
    if imatrix:
        array, _alive = _load_imatrix(imatrix)
        parameters.imatrix = ctypes.cast(array, ctypes.c_void_p)
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    if library.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)):
        sys.exit("llama_model_quantize failed")


if __name__ == "__main__":
    _main(*sys.argv[1:])
