"""The machine's description against what the system itself says."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from meditron.core.machine import cpu_class, describe, resolve_matrix_dtype

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_plain_json() -> None:
    assert json.loads(json.dumps(describe())) == describe()


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_cores_and_memory_are_what_this_process_may_use() -> None:
    assert 1 <= describe()["cores"] <= len(os.sched_getaffinity(0))
    assert 0 < describe()["memory_bytes"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.skipif(platform.system() != "Linux", reason="pins a process to one core")
def test_affinity_is_respected() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from meditron.core.machine import describe; print(describe()['cores'])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "1"


def test_versions_are_those_installed_and_nothing_is_imported() -> None:
    assert describe()["libraries"]["numpy"] == version("numpy")
    assert describe()["python"] == platform.python_version()
    code = "import sys; from meditron.core.machine import describe; describe(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_commit_is_the_checkouts() -> None:
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        pytest.skip("not in a checkout")
    code = "from meditron.core.machine import describe; print(describe()['git']['commit'])"
    answer = subprocess.check_output([sys.executable, "-c", code], text=True, cwd="/")
    log = subprocess.check_output(["git", "-C", str(ROOT), "log", "--format=%H", "-5"], text=True)
    assert answer.strip() in log.split()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sse2 avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8", "amx-bf16"),
        ("sse2 avx2 avx512f avx512_bf16", "avx512-bf16"),
        ("sse2 avx2 avx512f", "avx512"),
        ("sse2 avx2", "avx2"),
        ("fp asimd bf16 i8mm", "arm-bf16"),
        ("fp asimd", "arm"),
        ("sse2", platform.machine()),
    ],
)
def test_cpu_class_is_the_fastest_there_is(flags: str, expected: str) -> None:
    assert cpu_class(frozenset(flags.split())) == expected


def test_bfloat16_is_chosen_where_the_processor_says_that_it_multiplies_it() -> None:
    assert resolve_matrix_dtype("float32") == "float32"
    assert resolve_matrix_dtype("bfloat16") == "bfloat16"
    # torch's own word, from the processor and not from /proc; it knows no class that is slower than float32.
    torch = pytest.importorskip("torch")
    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if platform.machine() == "x86_64":
        assert resolve_matrix_dtype() == ("bfloat16" if quick else "float32")


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [("amx", "avx2 avx512f amx_bf16 amx_tile", "bfloat16"), ("laptop", "avx2", "float32")],
)
def test_the_choice_follows_the_flags(
    monkeypatch: pytest.MonkeyPatch, name: str, flags: str, expected: str
) -> None:
    monkeypatch.setattr(
        "meditron.core.machine._cpu_model_and_flags", lambda: (name, frozenset(flags.split()))
    )
    describe.cache_clear()
    try:
        assert resolve_matrix_dtype() == expected
    finally:
        describe.cache_clear()
