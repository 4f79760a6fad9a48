"""Servers of collections on this machine, and retries without pauses."""

from collections.abc import Iterator

import pytest

from store.collections.server import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr("meditron.store.download._PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr("meditron.store.collections.web_client._PAUSES", (0.01, 0.01, 0.01))
    with serving() as running:
        monkeypatch.setenv("MEDITRON_PUBMED_URL", f"{running.url}/pubmed")
        monkeypatch.setenv("MEDITRON_PMC_URL", running.url)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        # Tests with transformers set the variable of this constant, which is read on import.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield running
