"""Real inputs for every test: fetched through the project's own door, or read beside the checkout."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# A shell has what it starts in the background ignore SIGINT, and all its children with it; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from meditron.core.machine import cores

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # They divide the cores between them: one thread that runs is quicker than two that wait for a core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // int(workers))))

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("meditron", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meditron")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
QUICKSTART = tomllib.loads((ROOT / "recipes/quickstart.toml").read_text(encoding="utf-8"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the registry, by the fixtures it asks for; the longest file first."""
    for item in items:
        if {"smollm2_gguf", "pubmed_xml", "wiki_dump"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.network)
    # The longest file goes first, so that of several processes none is left alone with it at the end.
    items.sort(key=lambda item: item.path.name != "test_kills.py")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no shared/data folder beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    from meditron.store.fetch import fetch

    return fetch(QUICKSTART["base"])


@pytest.fixture(scope="session")
def smollm2_model(smollm2_gguf: Path) -> Any:
    """Our own Llama with its dequantized weights, fp32: seconds, so once for all."""
    from meditron.model.weights import load_model

    return load_model(smollm2_gguf)


@pytest.fixture(scope="session")
def smollm2_transformers(smollm2_gguf: Path) -> Any:
    """transformers' own LlamaForCausalLM, read from the same file, fp32: half a minute, so once for all."""
    from transformers import LlamaForCausalLM

    folder, name = smollm2_gguf.parent, smollm2_gguf.name
    return LlamaForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")


@pytest.fixture(scope="session")
def pubmed_xml() -> Path:
    """One daily update file of PubMed: 20,788 citations, gzip."""
    from meditron.store.fetch import fetch

    return fetch(QUICKSTART["corpus"]["sources"]["pubmed"]["from"])


@pytest.fixture(scope="session")
def wiki_dump() -> Path:
    """A MediaWiki dump of 206 pages, bzip2."""
    from meditron.store.fetch import fetch

    return fetch(QUICKSTART["corpus"]["sources"]["wiki"]["from"])
