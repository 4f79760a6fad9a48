"""What this machine is: a figure measured on it means little without."""

import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from meditron.version import __version__

__all__ = ["DType", "cores", "cpu_class", "describe", "free_disk", "matrix_dtype"]

DType = Literal["auto", "float32", "bfloat16"]
"""A number format that matrices are multiplied in; `auto` is what `matrix_dtype` says."""

# Those that can change a result or a speed; looked up, never imported.
_LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "tokenizers",
    "safetensors",
    "gguf",
    "datatrove",
    "lxml",
    "libgguf",
    "xllamacpp",
    "transformers",
)
# What decides the speed of a matrix product, fastest first: class, then the flags of /proc/cpuinfo it takes.
_CLASSES = (
    ("amx-bf16", {"amx_bf16", "amx_tile"}),
    ("avx512-bf16", {"avx512_bf16"}),
    ("avx512", {"avx512f"}),
    ("avx2", {"avx2"}),
    ("arm-bf16", {"asimd", "bf16"}),
    ("arm", {"asimd"}),
)
# Those that multiply bfloat16 in instructions of its own.
_BFLOAT16 = frozenset({"amx-bf16", "avx512-bf16", "arm-bf16"})


@cache
def describe() -> dict[str, Any]:
    """The machine, the libraries and the code, as plain JSON values; looked up once a process.

    `cpu` (the model), `cpu_class` (see `cpu_class`), `cores` (those this process may use) and `memory_bytes`
    (as much as it may use), `gpus`, `system`, `python`, `libraries` (name → version, those installed), `git`
    (`commit` and `dirty` of the package's own checkout; commit null where it is installed without one).
    """
    model, flags = _cpu()
    return {
        "cpu": model,
        "cpu_class": cpu_class(flags),
        "cores": cores(),
        "memory_bytes": _memory(),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": _libraries(),
        "git": _git(),
    }


def cpu_class(flags: frozenset[str]) -> str:
    """The fastest matrix instructions among a processor's flags: `amx-bf16 | avx512-bf16 | … | arm`.

    The architecture's own name (`x86_64`) where none is known.
    """
    return next((name for name, needed in _CLASSES if needed <= flags), platform.machine())


def matrix_dtype(asked: DType = "auto") -> Literal["float32", "bfloat16"]:
    """The number format asked for; for `auto` bfloat16 on a CPU that has instructions for it, else float32.

    Without them bfloat16 is put together from float32, many times slower (docs/explanation/profile.md). By what the
    processor says of itself, never by timing: the same machine gives the same answer every time.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if describe()["cpu_class"] in _BFLOAT16 else "float32"


def _cpu() -> tuple[str, frozenset[str]]:
    """Model and flags, from Linux; elsewhere what Python knows."""
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, frozenset(fields.get("flags", fields.get("Features", "")).split())


def cores() -> int:
    """Cores that may be used: affinity, then the container's quota (cgroup v2 `cpu.max`, v1 `cfs_quota`)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [line.split() for line in _cgroup("", "cpu.max")]
    v1 = zip(_cgroup("cpu", "cpu.cfs_quota_us"), _cgroup("cpu", "cpu.cfs_period_us"), strict=False)
    limits = [
        int(quota) / int(period)
        for quota, period in [*quotas, *(list(pair) for pair in v1)]
        if quota.isdigit() and int(period) > 0
    ]
    return max(1, round(min([affinity, *limits])))


def _memory() -> int | None:
    """Bytes that may be used: the machine's, or the container's limit (cgroup v2 and v1) if that is less."""
    total = next((line for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal:")), "")
    sizes = [int(total.split()[1]) * 1024] if total else []
    limits = [*_cgroup("", "memory.max"), *_cgroup("memory", "memory.limit_in_bytes")]
    return min([*sizes, *(int(limit) for limit in limits if limit.isdigit())], default=None)


def _cgroup(controller: str, file: str) -> list[str]:
    """What `file` says in this process's control group and in each above it; an inner one may allow less."""
    values = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        inner = Path("/", path.lstrip("/"))
        for folder in (inner, *inner.parents):
            values.append(_read(f"/sys/fs/cgroup/{controller}/{folder}/{file}").strip())
    return [value for value in values if value]


def free_disk(path: Path) -> int:
    """Return the bytes that a user may still write at a path, or where it will be made."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _gpus() -> list[str]:
    """Models of the NVIDIA GPUs, as the driver tells them."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = (line.partition(":") for file in files for line in _read(file).splitlines())
    return [value.strip() for name, _, value in lines if name == "Model"]


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Absent on other systems, and unreadable in some containers: what is unknown is left out.
        return ""


def _libraries() -> dict[str, str]:
    found = {"meditron": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any]:
    """The commit this package was run from, and whether its files differ from that commit."""
    # A package installed inside somebody's repository is not tracked by it, and has no commit there.
    if _ask_git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": False}
    changes = _ask_git("status", "--porcelain", "--", "..")
    return {"commit": _ask_git("rev-parse", "HEAD"), "dirty": bool(changes)}


def _ask_git(*words: str) -> str | None:
    """Git's answer; None where there is no git, or no repository that it trusts."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
