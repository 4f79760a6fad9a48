"""A recipe whose sources are collections: dry run, corpus, licences of the documents."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meditron.recipe import load_recipe, run_recipe
from meditron.store.jsonl import read_jsonl
from store.collections.server import Page, Server, medline, publish_pubmed, serving

RECIPE = """
base = "init:nano"

[corpus]
min_characters = 5
heldout = 0

[corpus.sources.pubmed]
from = "pubmed:"

[corpus.sources.guidelines]
from = "GUIDELINES"
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("meditron.store.collections.web_client._PAUSES", (0.01,))
    with serving() as running:
        monkeypatch.setenv("MEDITRON_PUBMED_URL", f"{running.url}/pubmed")
        publish_pubmed(running, "baseline", {"pubmed26n0001.xml.gz": medline(1, 30)})
        publish_pubmed(running, "updatefiles", {"pubmed26n0002.xml.gz": medline(20, 20, "revised")})
        yield running


def write_recipe(tmp_path: Path) -> Path:
    """Write a recipe with PubMed and with a folder whose files have their provenance beside them."""
    folder = tmp_path / "guidelines"
    folder.mkdir()
    for name in ("fever", "sepsis"):
        (folder / f"{name}.txt").write_text(f"Guideline on {name}, in some sentences that are long enough.")
    rows = [{"name": "fever.txt", "licence": "CC BY 4.0", "url": "https://example.org/fever.pdf"}]
    (folder / "provenance.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("GUIDELINES", str(folder)))
    return path


def test_a_dry_run_lists_and_a_run_fetches(server: Server, tmp_path: Path):
    recipe = load_recipe(write_recipe(tmp_path))
    dry = run_recipe(recipe, out=tmp_path / "runs", only="corpus", dry_run=True)
    assert dry.problems == []
    assert dry.to_json()["fetches"]["corpus.pubmed"] | {"free_bytes": 0} == {
        "source": "pubmed:",
        "files": 2,
        "missing_files": 2,
        "missing_bytes": 2048,
        "free_bytes": 0,
        "note": None,
    }
    assert not list(tmp_path.rglob("*.xml.gz"))
    result = run_recipe(recipe, out=tmp_path / "runs", only="corpus")
    metrics = result.stages["corpus"].metrics["sources"]
    assert (metrics["pubmed"]["read"], metrics["pubmed"]["kept"]) == (50, 39)
    assert metrics["guidelines"]["skipped"] == {"record of the fetch": 1}
    rows = {
        row["id"]: row
        for path in (tmp_path / "runs").glob("*/corpus/train/*/*.zst")
        for row in read_jsonl(path)
    }
    fever = next(row for key, row in rows.items() if "fever" in key)
    assert (fever["meta"]["licence"], fever["meta"]["url"]) == ("CC BY 4.0", "https://example.org/fever.pdf")
    assert "licence" not in next(row for key, row in rows.items() if "sepsis" in key)["meta"]
    # The collection is in the cache: the stage is up to date, and nothing is asked of the server.
    requests = len(server.requests)
    again = run_recipe(recipe, out=tmp_path / "runs", only="corpus", dry_run=True)
    assert (again.to_json()["fetches"], again.decisions["corpus"].action) == ({}, "keep")
    assert len(server.requests) == requests


def test_a_server_that_does_not_answer_is_a_problem_of_the_dry_run(server: Server, tmp_path: Path):
    server.pages["/pubmed/baseline/"] = Page(b"<html>Sorry</html>", "text/html")
    dry = run_recipe(load_recipe(write_recipe(tmp_path)), out=tmp_path / "runs", only="corpus", dry_run=True)
    assert ["not an index of PubMed's files" in problem.error.message for problem in dry.problems] == [True]


def test_a_wrong_name_is_found_before_the_run(server: Server, tmp_path: Path):
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace('"pubmed:"', '"pubmed:weekly"'))
    dry = run_recipe(load_recipe(path), out=tmp_path / "runs", only="corpus", dry_run=True)
    assert "pubmed:weekly: no such collection" in dry.problems[0].error.message
    assert not server.requests
