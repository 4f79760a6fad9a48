"""Checks of a machine and an installation: each says what it makes possible, what is lost, and the remedy.

Libraries are imported in child processes with a time limit, because an import can be slow, hang, or crash the
process; the checks run at the same time.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from meditron.core import machine
from meditron.core.units import format_bytes
from meditron.version import __version__

__all__ = ["Check", "Group", "State", "run_checks"]

State = Literal["ok", "limited", "missing", "broken"]
Group = Literal["installation", "processor", "folders", "compiler", "gpu", "torch", "extras"]

_SECONDS = 60.0
"""Time limit of a child process."""
_SHARED_MEMORY = 1 << 30
"""Bytes of /dev/shm below which ranks of one machine may run out of it."""
_FREE_DISK = 20 * 10**9
"""Bytes that the quickstart and its caches fit into several times."""
_PACKAGE = "meditron"

# Extra → what it makes possible. Extras for work on the package itself are not listed.
_EXTRAS = {
    "corpus": "readers of PubMed and Wikipedia files, corpus building on several processes",
    "train": "pretraining, finetuning, and evaluation with torch",
    "release": "quantized GGUF files and uploads",
    "llamacpp": "chat and evaluation with llama.cpp, models behind a server",
    "serve": "the server and its pages",
    "gpu": "float8 training on GPUs",
    "ray": "the corpus on a Ray cluster",
    "track": "metrics in TensorBoard and trackio",
    "signing": "signatures of model files (`sign`, `verify --key`)",
    "bom": "bills of materials (`verify --bom`)",
    "otlp": "the server's requests in OpenTelemetry",
    "gptq": "GPTQ and AWQ folders for vLLM",
}
_DTYPES = (((9, 0), "bfloat16 and float8"), ((8, 0), "bfloat16"), ((0, 0), "float32"))
"""Compute capability → the dtypes that training uses from it on (`train.runtime`, `train.compilation`)."""
_IMPORT_NAMES = {"pyyaml": "yaml"}
"""Package → the module to import, if its name is another."""

_TORCH_PROBE = """
import json, torch
import torch.distributed as distributed
gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
properties = [torch.cuda.get_device_properties(index) for index in gpus]
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "gpus": [[one.name, one.total_memory, one.major, one.minor] for one in properties],
    "gloo": distributed.is_available() and distributed.is_gloo_available(),
    "nccl": distributed.is_available() and distributed.is_nccl_available(),
}))
"""
_PROGRAM = """
#include <new>
#include <omp.h>
int main() { delete new int; return omp_get_max_threads() < 1; }
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    """The thing itself: a version, a size, a number of devices."""
    effect: str
    """For `ok` what it makes possible; otherwise what is lost."""
    remedy: str | None = None
    """A command, or another change, that would make it `ok`."""
    required: bool = False
    """True if every installation needs it."""

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain JSON values."""
        return asdict(self)


def run_checks(folder: Path, cache: Path, only: Collection[Group] = get_args(Group)) -> list[Check]:
    """Check this machine and installation; takes about as long as importing torch.

    Args:
        folder: The folder in which runs are written.
        cache: The folder of downloaded files.
        only: The groups of checks to run; default: all.
    """
    groups: dict[Group, Callable[[], list[Check]]] = {
        "installation": _check_python,
        "processor": _check_processor,
        "folders": lambda: _check_folders(folder, cache),
        "compiler": _check_compiler,
        "gpu": _check_gpus,
        "torch": _check_torch,
        "extras": _check_extras,
    }
    chosen = [check for name, check in groups.items() if name in only]
    with ThreadPoolExecutor(len(groups)) as pool:
        return [check for checks in pool.map(lambda group: group(), chosen) for check in checks]


def _run(command: Sequence[str]) -> tuple[int | None, str]:
    """Return a command's exit code and output; None if it does not exist or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_SECONDS:.0f} s"
    except OSError as error:
        return None, error.strerror or str(error)
    if done.returncode:
        # Of a traceback or of a compiler's messages the last line is the most informative.
        lines = (done.stderr or done.stdout).strip().splitlines()
        return done.returncode, lines[-1][:200] if lines else f"exit code {done.returncode}"
    return 0, done.stdout.strip()


def _requirements(extra: str | None) -> list[str]:
    """Return the names of the packages that the installation, or one of its extras, requires."""
    try:
        lines = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from a source tree
        return []
    names = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if (wanted[1] if wanted else None) == extra:
            names.append(re.split(r"[\s\[<>=!~(]", requirement.strip(), maxsplit=1)[0])
    return names


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_python() -> list[Check]:
    """Import the packages that every installation needs."""
    packages = _requirements(None)
    missing = [name for name in packages if _version(name) is None]
    found = f"meditron {__version__}, Python {sys.version.split()[0]}, {len(packages)} packages"
    reinstall = f"{Path(sys.executable).name} -m pip install --force-reinstall {_PACKAGE}"
    if missing:
        lost = f"not installed: {', '.join(missing)}"
        return [Check("installation", "broken", found, lost, reinstall, required=True)]
    modules = [_IMPORT_NAMES.get(name, name.replace("-", "_")) for name in packages]
    code, output = _run([sys.executable, "-c", f"import {', '.join(modules)}"]) if modules else (0, "")
    if code != 0:
        return [
            Check("installation", "broken", found, f"an import fails: {output}", reinstall, required=True)
        ]
    return [Check("installation", "ok", found, "recipes, plans, reports", required=True)]


def _check_processor() -> list[Check]:
    here = machine.describe()
    kind, memory = here["cpu_class"], here["memory_bytes"]
    found = f"{here['cpu']}, {here['cores']} cores, {kind}"
    if machine.resolve_matrix_dtype("auto") == "bfloat16":
        cpu = Check("processor", "ok", found, "bfloat16 training on the CPU")
    else:
        lost = "no bfloat16 instructions: training on the CPU is in float32, several times slower"
        cpu = Check("processor", "limited", found, lost, "another machine, or a GPU")
    size = "unknown" if memory is None else format_bytes(memory)
    # AdamW in bfloat16 with float32 master weights takes 16 bytes per parameter.
    largest = "" if memory is None else f"full training of models up to {memory / 16 / 1e9:.1f} B parameters"
    return [cpu, Check("memory", "ok", size, largest)]


def _check_folders(folder: Path, cache: Path) -> list[Check]:
    checks = [_check_writable("runs", folder, required=False), _check_writable("cache", cache, required=True)]
    shared = Path("/dev/shm")  # noqa: S108  # nothing is written there
    if not shared.is_dir():
        return [*checks, Check("shared memory", "missing", "no /dev/shm", "several ranks on one machine")]
    size = shutil.disk_usage(shared).total
    found = f"{shared} {format_bytes(size)}"
    if size < _SHARED_MEMORY:
        lost = "several ranks or loader processes on one machine may end with a bus error"
        remedy = "docker run --shm-size=8g …, or mount -o remount,size=8G /dev/shm"
        return [*checks, Check("shared memory", "limited", found, lost, remedy)]
    return [*checks, Check("shared memory", "ok", found, "several ranks on one machine (--nproc)")]


def _check_writable(name: str, folder: Path, *, required: bool) -> Check:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = machine.free_disk_bytes(folder)
    found = f"{folder}: {format_bytes(free)} free"
    if not os.access(existing, os.W_OK | os.X_OK):
        remedy = "export MEDITRON_CACHE=FOLDER" if name == "cache" else "--out FOLDER, or another folder"
        return Check(name, "broken" if required else "missing", found, "not writable", remedy, required)
    if free < _FREE_DISK:
        lost = f"less than {format_bytes(_FREE_DISK)}: checkpoints of a large model do not fit"
        return Check(name, "limited", found, lost, "free some space, or use another disk", required)
    return Check(
        name, "ok", found, "downloads" if name == "cache" else "checkpoints and models", None, required
    )


def _check_compiler() -> list[Check]:
    """Compile and run a program with OpenMP, as torch.compile does on a CPU."""
    lost = "compile = true on a CPU (1.3 to 1.6 times faster training)"
    remedy = "apt-get install g++, or conda install gxx"
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and shutil.which(name)]
    if not names:
        return [Check("C++ compiler", "missing", "none", lost, remedy)]
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.cpp"), Path(folder, "probe")
        source.write_text(_PROGRAM, encoding="ascii")
        code, output = _run([names[0], "-fopenmp", "-o", str(program), str(source)])
        if code == 0:
            code, output = _run([str(program)])
    if code != 0:
        return [Check("C++ compiler", "broken", names[0], f"{lost}; it fails: {output}", remedy)]
    version = _run([names[0], "--version"])[1].partition("\n")[0]
    return [Check("C++ compiler", "ok", version, "torch.compile on a CPU")]


def _check_gpus() -> list[Check]:
    """Ask NVIDIA's driver and compiler; torch's own view of the GPUs is checked apart."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    code, output = _run(query)
    if code != 0:
        if machine.describe()["gpus"]:
            return [Check("NVIDIA driver", "broken", output, "the GPUs cannot be used", "install the driver")]
        return [
            Check(
                "GPU",
                "missing",
                "none",
                "training of models above about 1 B parameters",
                "a machine with a GPU",
            )
        ]
    rows = [
        [cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.count(",") == 2
    ]
    names = ", ".join(f"{name} ({int(size) / 1024:.0f} GiB)" for name, size, _ in rows if size.isdigit())
    checks = [Check("GPU", "ok", f"{names}; driver {rows[0][2]}" if rows else output, "training on a GPU")]
    code, output = _run(["nvcc", "--version"])
    if code == 0:
        return [*checks, Check("nvcc", "ok", output.splitlines()[-1], "packages with their own GPU kernels")]
    lost = "building packages with their own GPU kernels; torch does not need it"
    return [*checks, Check("nvcc", "limited", "none", lost, "install the CUDA toolkit")]


def _check_torch() -> list[Check]:
    install = f"pip install '{_PACKAGE}[train]'"
    if _version("torch") is None:
        return [Check("torch", "missing", "none", "training, and evaluation with torch", install)]
    code, output = _run([sys.executable, "-c", _TORCH_PROBE])
    if code != 0:
        return [Check("torch", "broken", str(_version("torch")), f"importing it fails: {output}", install)]
    probe = json.loads(output.splitlines()[-1])
    found = f"{probe['version']}, {'CUDA ' + probe['cuda'] if probe['cuda'] else 'CPU only'}"
    backends = [name for name in ("gloo", "nccl") if probe[name]]
    checks = [
        Check("torch", "ok", found, "training"),
        Check("distributed", "ok", ", ".join(backends), "several ranks")
        if backends
        else Check("distributed", "missing", "none", "several ranks (--nproc, torchrun)", install),
    ]
    if probe["gpus"]:
        names = ", ".join(f"{name} ({format_bytes(size)})" for name, size, *_ in probe["gpus"])
        # A job has ranks on all GPUs, so the oldest one decides.
        oldest = min((major, minor) for *_, major, minor in probe["gpus"])
        dtypes = next(dtypes for capability, dtypes in _DTYPES if oldest >= capability)
        return [*checks, Check("torch on GPU", "ok", names, f"training in {dtypes}")]
    if machine.describe()["gpus"] or shutil.which("nvidia-smi"):
        lost = "the machine has a GPU that torch does not see"
        remedy = "pip install torch from https://pytorch.org/get-started, for the driver's CUDA version"
        return [*checks, Check("torch on GPU", "broken", found, lost, remedy)]
    return checks


def _check_extras() -> list[Check]:
    checks = []
    for extra, purpose in _EXTRAS.items():
        packages = _requirements(extra)
        if not packages:  # an older installation without this extra
            continue
        missing = [name for name in packages if _version(name) is None]
        name, install = f"extra {extra}", f"pip install '{_PACKAGE}[{extra}]'"
        if missing:
            checks.append(Check(name, "missing", f"without {', '.join(missing)}", purpose, install))
        else:
            found = ", ".join(f"{package} {_version(package)}" for package in packages)
            checks.append(Check(name, "ok", found, purpose))
    return checks
