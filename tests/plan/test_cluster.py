"""Cluster files: those that ship, and errors that name the file and the key."""

import re
from pathlib import Path

import pytest

from meditron.core.errors import InputError, UsageError
from meditron.plan.cluster import load_cluster, load_constants, with_nodes

CLUSTERS = Path(__file__).parents[2] / "recipes/clusters"


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_clusters_load_and_every_value_has_a_comment(path: Path) -> None:
    cluster = load_cluster(path)
    load_constants(cluster.gpu)
    assert cluster.memory_bytes > 10e9
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith(("#", "title", "gpu", "nodes")):
            assert "#" in line or lines[number - 1].startswith("#"), line


def test_four_clusters_ship() -> None:
    assert {path.stem for path in CLUSTERS.glob("*.toml")} == {"a100-80", "h100", "h200", "laptop"}


def test_emissions_are_those_of_the_model_card() -> None:
    # 332 hours on 128 GPUs: 486 kg CO2e (Meditron-70B's model card).
    assert load_cluster(CLUSTERS / "a100-80.toml").kgco2e(42_496) == pytest.approx(486, rel=0.002)


def test_nodes_can_be_replaced() -> None:
    cluster = with_nodes(load_cluster(CLUSTERS / "h100.toml"), 3)
    assert (cluster.gpus, cluster.name) == (24, "3 nodes × 8 NVIDIA H100-SXM5-80GB")


def test_a_wrong_file_is_named_with_its_key(tmp_path: Path) -> None:
    text = (CLUSTERS / "h100.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    wrong = {
        "pue": text.replace("pue = 1.56", "pue = 0.5"),
        "gpu": text.replace('gpu = "h100"', 'gpu = "v100"'),
        "gpus": text.replace("nodes = 1\n", "nodes = 1\ngpus = 8\n"),
        "nodes": text.replace("nodes = 1\n", "nodes = true\n"),
        "price_per_gpu_hour": re.sub("price_per_gpu_hour = .*", "price_per_gpu_hour = true", text),
        "watts_per_gpu": text.replace("watts_per_gpu", "# "),
    }
    for key, content in wrong.items():
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=rf"mine\.toml.*{key}"):
            load_cluster(path)
    path.write_text("nodes = = 1", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.toml.*not valid TOML"):
        load_cluster(path)
    with pytest.raises(UsageError, match="no such file"):
        load_cluster(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="a folder, not a cluster file"):
        load_cluster(tmp_path)


def test_a_rate_too_small_for_arithmetic_is_refused(tmp_path: Path) -> None:
    text = (CLUSTERS / "h100.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("peak_flops = 989.4e12", "peak_flops = 1e-300"), encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.toml \(peak_flops\)"):
        load_cluster(path)
