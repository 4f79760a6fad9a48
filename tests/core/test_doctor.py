"""The checks of `meditron doctor` on this machine, and on ones that lack something."""

import json
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest

from meditron.core import doctor
from meditron.core.doctor import Check, Group, run_checks


def checks(tmp_path: Path, *only: Group) -> dict[str, Check]:
    chosen = only or get_args(Group)
    return {check.name: check for check in run_checks(tmp_path / "runs", tmp_path / "cache", chosen)}


def test_this_machine_has_what_the_tests_need(tmp_path: Path) -> None:
    found = checks(tmp_path)
    assert not [check for check in found.values() if check.required and check.state != "ok"]
    assert metadata.version("torch") in found["torch"].found
    assert "gloo" in found["distributed"].found
    assert found["C++ compiler"].state == ("ok" if shutil.which("c++") or shutil.which("g++") else "missing")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()
    for check in found.values():
        assert check.found
        assert check.effect
        # Something that is absent comes with the change that adds it.
        assert check.state == "ok" or check.remedy, check


def test_without_a_compiler_and_a_driver_it_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = checks(tmp_path, "compiler", "gpu")
    assert (found["C++ compiler"].state, found["GPU"].state) == ("missing", "missing")
    assert "compile = true" in found["C++ compiler"].effect
    assert "apt-get install" in str(found["C++ compiler"].remedy)


def test_a_compiler_that_fails_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho first >&2\necho 'no licence' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    check = checks(tmp_path, "compiler")["C++ compiler"]
    assert (check.state, check.found) == ("broken", str(compiler))
    assert check.effect.endswith("no licence")


def test_gpus_are_those_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 570.1'\necho 'NVIDIA H200, 143771, 570.1'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = checks(tmp_path, "gpu", "torch")
    assert found["GPU"].found == "NVIDIA H200 (140 GiB), NVIDIA H200 (140 GiB); driver 570.1"
    # The driver has GPUs, and torch here is a build for CPUs or does not see them.
    assert found["torch on GPU"].state == "broken"


@pytest.mark.parametrize(
    ("capabilities", "dtypes"),
    [([(9, 0)], "bfloat16 and float8"), ([(9, 0), (8, 9)], "bfloat16"), ([(7, 0)], "float32")],
)
def test_dtypes_of_a_gpu_are_those_that_training_accepts(
    capabilities: list[tuple[int, int]], dtypes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [["NVIDIA", 80 << 30, *capability] for capability in capabilities]
    probe = {"version": "2", "cuda": "12", "gpus": gpus, "gloo": True, "nccl": True}
    monkeypatch.setattr(doctor, "_TORCH_PROBE", f"print({json.dumps(json.dumps(probe))})")
    assert checks(tmp_path, "torch")["torch on GPU"].effect == f"training in {dtypes}"


@pytest.mark.parametrize("package", ["msgspec", "numpy"])
def test_a_damaged_package_of_a_plain_installation_is_broken(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('lib is damaged')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = checks(tmp_path, "installation")["installation"]
    assert (check.state, check.required) == ("broken", True)
    assert "lib is damaged" in check.effect
    assert "--force-reinstall" in str(check.remedy)


def test_an_import_that_hangs_ends_with_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_SECONDS", 3.0)
    began = time.monotonic()
    check = checks(tmp_path, "torch")["torch"]
    assert check.state == "broken"
    assert "no answer in 3 s" in check.effect
    assert time.monotonic() - began < 60


def test_missing_packages_of_an_extra_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=2", 'absent-package>=1; extra == "train"', 'torch[x]>=2 ; extra == "train"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    found = checks(tmp_path, "extras")
    assert found["extra train"].state == "missing"
    assert found["extra train"].found == "without absent-package"
    assert found["extra train"].remedy == "pip install 'meditron[train]'"
    assert not found["extra train"].required
    assert "extra serve" not in found


def test_a_cache_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    found = checks(tmp_path, "folders")
    assert found["cache"].state == "broken"
    assert "MEDITRON_CACHE" in str(found["cache"].remedy)


def test_little_shared_memory_is_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/shm").is_dir():  # noqa: S108
        pytest.skip("this system has no /dev/shm")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(total=64 << 20, free=1))
    found = checks(tmp_path, "folders")
    assert found["shared memory"].state == "limited"
    assert "--shm-size" in str(found["shared memory"].remedy)
    assert found["runs"].state == "limited"


def test_it_imports_no_torch_itself(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from meditron.core.doctor import run_checks; "
        f"folder = Path({str(tmp_path)!r}); run_checks(folder, folder, ['torch']); "
        "assert 'torch' not in sys.modules"
    )
    assert doctor._run([sys.executable, "-c", code]) == (0, "")
