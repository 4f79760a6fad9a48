"""Description of the machine and the software, recorded with every result."""

import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from meditron.version import __version__

__all__ = ["DType", "cpu_class", "describe", "free_disk_bytes", "resolve_matrix_dtype", "usable_cores"]

DType = Literal["auto", "float32", "bfloat16"]
"""Number format of matrix products; `auto` is resolved by `resolve_matrix_dtype`."""

# Libraries whose version can change results or speed. Versions are read from the packages' metadata, because
# importing the libraries would be slow.
_LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "tokenizers",
    "safetensors",
    "gguf",
    "lxml",
    "xllamacpp",
    "transformers",
    "ray",
)
# CPU classes by the speed of matrix products, fastest first: (name, flags that /proc/cpuinfo must list).
_CLASSES = (
    ("amx-bf16", {"amx_bf16", "amx_tile"}),
    ("avx512-bf16", {"avx512_bf16"}),
    ("avx512", {"avx512f"}),
    ("avx2", {"avx2"}),
    ("arm-bf16", {"asimd", "bf16"}),
    ("arm", {"asimd"}),
)
# Classes with instructions for products of bfloat16.
_BFLOAT16 = frozenset({"amx-bf16", "avx512-bf16", "arm-bf16"})


@cache
def describe() -> dict[str, Any]:
    """Return the machine, the libraries and the code version, as plain JSON values; cached.

    Keys: `cpu` (the model), `cpu_class`, `cores` and `memory_bytes` (available to this process), `gpus`,
    `system`, `python`, `libraries` (name → version, if installed), `git` (`commit` and `dirty` of the
    package's own checkout; commit is null for an installed package).
    """
    model, flags = _cpu_model_and_flags()
    return {
        "cpu": model,
        "cpu_class": cpu_class(flags),
        "cores": usable_cores(),
        "memory_bytes": _usable_memory_bytes(),
        "gpus": _gpu_models(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": _library_versions(),
        "git": _git_state(),
    }


def cpu_class(flags: frozenset[str]) -> str:
    """Return the class of the fastest matrix instructions: `amx-bf16 | avx512-bf16 | … | arm`.

    If the CPU's flags match no class, the architecture's name is returned, such as `x86_64`.
    """
    return next((name for name, needed in _CLASSES if needed <= flags), platform.machine())


def resolve_matrix_dtype(dtype: DType = "auto") -> Literal["float32", "bfloat16"]:
    """Resolve `auto` to bfloat16 on a CPU with instructions for it, else to float32.

    Without such instructions bfloat16 is emulated with float32 and many times slower
    (docs/explanation/profile.md). The choice depends on the CPU's flags and not on timing, so it is the same
    in every run on a machine.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if describe()["cpu_class"] in _BFLOAT16 else "float32"


def _cpu_model_and_flags() -> tuple[str, frozenset[str]]:
    """Return the CPU's model and flags from /proc/cpuinfo; on other systems what Python reports."""
    fields: dict[str, str] = {}
    for line in _read_text_or_empty("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, frozenset(fields.get("flags", fields.get("Features", "")).split())


def usable_cores() -> int:
    """Return the number of usable cores: affinity, or the container's quota if lower (cgroup v2 and v1)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [line.split() for line in _cgroup_values("", "cpu.max")]
    v1 = zip(
        _cgroup_values("cpu", "cpu.cfs_quota_us"), _cgroup_values("cpu", "cpu.cfs_period_us"), strict=False
    )
    limits = [
        int(quota) / int(period)
        for quota, period in [*quotas, *(list(pair) for pair in v1)]
        if quota.isdigit() and int(period) > 0
    ]
    return max(1, round(min([affinity, *limits])))


def _usable_memory_bytes() -> int | None:
    """Return the bytes of usable memory: the machine's, or the container's limit (cgroup v2, v1) if lower."""
    total = next(
        (line for line in _read_text_or_empty("/proc/meminfo").splitlines() if line.startswith("MemTotal:")),
        "",
    )
    sizes = [int(total.split()[1]) * 1024] if total else []
    limits = [*_cgroup_values("", "memory.max"), *_cgroup_values("memory", "memory.limit_in_bytes")]
    return min([*sizes, *(int(limit) for limit in limits if limit.isdigit())], default=None)


def _cgroup_values(controller: str, file: str) -> list[str]:
    """Return the values of one setting in this process's control group and in all groups above it.

    Each of these groups limits the process.
    """
    values = []
    for line in _read_text_or_empty("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        group = Path("/", path.lstrip("/"))
        for folder in (group, *group.parents):
            values.append(_read_text_or_empty(f"/sys/fs/cgroup/{controller}/{folder}/{file}").strip())
    return [value for value in values if value]


def free_disk_bytes(path: Path) -> int:
    """Return the free bytes on the disk of a path, which need not exist yet."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _gpu_models() -> list[str]:
    """Return the models of the NVIDIA GPUs, as reported by the driver."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = (line.partition(":") for file in files for line in _read_text_or_empty(file).splitlines())
    return [value.strip() for name, _, value in lines if name == "Model"]


def _read_text_or_empty(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Absent on other systems and unreadable in some containers; unknown values are left out.
        return ""


def _library_versions() -> dict[str, str]:
    versions = {"meditron": __version__}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _git_state() -> dict[str, Any]:
    """Return the commit of the package's git checkout, and whether files were changed since that commit."""
    # If the package is installed inside another project's repository, that repository does not track its
    # files, so that repository's commit says nothing about the package.
    if _run_git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": False}
    changes = _run_git("status", "--porcelain", "--", "..")
    return {"commit": _run_git("rev-parse", "HEAD"), "dirty": bool(changes)}


def _run_git(*arguments: str) -> str | None:
    """Return git's output; None without git, or outside of a repository that git trusts."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
