"""Real inputs for every test: fetched by `meditron.store.fetch`, or read beside the checkout."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# A shell makes background jobs and their children ignore SIGINT, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from meditron.core.machine import usable_cores

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # The workers share the cores: one running thread is faster than two that wait for a core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // int(workers))))

# No deadline: an example's time means nothing on a shared machine.
settings.register_profile("meditron", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meditron")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
QUICKSTART = tomllib.loads((ROOT / "recipes/quickstart.toml").read_text(encoding="utf-8"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests whose fixtures need the package index, and move the longest file to the front."""
    for item in items:
        if {"smollm2_gguf", "pubmed_xml", "wiki_dump"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.network)
    # Otherwise one worker would still run the longest file after all others have finished.
    items.sort(key=lambda item: item.path.name != "test_kills.py")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no shared/data folder beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """Fetch SmolLM2-135M-Instruct, Q4_1."""
    from meditron.store.fetch import fetch

    return fetch(QUICKSTART["base"])


@pytest.fixture(scope="session")
def smollm2_model(smollm2_gguf: Path) -> Any:
    """Load our Llama with its dequantized weights in fp32; takes seconds, so once per session."""
    from meditron.model.weights import load_model

    return load_model(smollm2_gguf)


@pytest.fixture(scope="session")
def smollm2_transformers(smollm2_gguf: Path) -> Any:
    """Load transformers' LlamaForCausalLM from the same file in fp32; takes half a minute."""
    from transformers import LlamaForCausalLM

    folder, name = smollm2_gguf.parent, smollm2_gguf.name
    return LlamaForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")


@pytest.fixture(scope="session")
def pubmed_xml() -> Path:
    """Fetch one daily update file of PubMed: 20,788 citations, gzip."""
    from meditron.store.fetch import fetch

    return fetch(QUICKSTART["corpus"]["sources"]["pubmed"]["from"])


@pytest.fixture(scope="session")
def wiki_dump() -> Path:
    """Fetch a MediaWiki dump of 206 pages, bzip2."""
    from meditron.store.fetch import fetch

    return fetch(QUICKSTART["corpus"]["sources"]["wiki"]["from"])
