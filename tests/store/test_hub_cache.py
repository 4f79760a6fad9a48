"""Models in the Hugging Face cache, laid out by huggingface_hub itself."""

from pathlib import Path

import pytest

from meditron.core.errors import SourceError
from meditron.store.fetch import fetch, fetch_without_download, parse_source, public_source, source_identity
from meditron.store.hub_cache import cached_snapshot, hub_cache_folder
from meditron.store.models import resolve_model

NAME = "org/some-Model.7b"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out a model in a cache as `hf download` does: files are links to blobs, refs/main is the commit."""
    file_download = pytest.importorskip("huggingface_hub.file_download", reason="needs the extra `release`")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HOME", raising=False)
    repository = tmp_path / "hub" / file_download.repo_folder_name(repo_id=NAME, repo_type="model")
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for index, name in enumerate(("config.json", "model.safetensors")):
        (repository / "blobs" / str(index)).write_text("{}")
        (folder / name).symlink_to(f"../../blobs/{index}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_cached_model_is_found_as_huggingface_hub_finds_it(snapshot: Path) -> None:
    from huggingface_hub import snapshot_download

    theirs = snapshot_download(NAME, cache_dir=hub_cache_folder(), local_files_only=True)
    assert cached_snapshot(NAME) == Path(theirs) == snapshot
    assert fetch(f"hf:{NAME}") == fetch_without_download(f"hf:{NAME}") == snapshot
    assert fetch(f"hf:{NAME}:config.json") == snapshot / "config.json"
    assert source_identity(f"hf:{NAME}") == f"hf:{NAME}@{COMMIT}"
    assert source_identity(f"hf:{NAME}:config.json") == f"hf:{NAME}@{COMMIT}:config.json"
    assert public_source(f"hf:{NAME}") == f"hf:{NAME}"
    files = resolve_model(f"hf:{NAME}")
    assert (files.kind, files.path, files.spec) == ("hf", snapshot, f"hf:{NAME}")


def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub_cache_folder() == tmp_path / "hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert hub_cache_folder() == tmp_path / "cache/huggingface/hub"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub_cache_folder() == Path.home() / ".cache/huggingface/hub"


@pytest.mark.parametrize("head", ["../../../etc", "", "main", "0" * 41, COMMIT.replace("0", "1", 1)])
def test_a_damaged_or_empty_cache_is_a_missing_model(snapshot: Path, head: str) -> None:
    (snapshot.parents[1] / "refs" / "main").write_text(head)
    for function in (fetch, fetch_without_download, source_identity, resolve_model):
        with pytest.raises(SourceError, match=f"hf:{NAME}: not in the Hugging Face cache") as raised:
            function(f"hf:{NAME}")
        assert f"hf download {NAME}" in str(raised.value.hint)


def test_a_missing_file_of_a_cached_model_is_named(snapshot: Path) -> None:
    for function in (fetch, source_identity):
        with pytest.raises(SourceError, match=r"confg\.json: no such file") as raised:
            function(f"hf:{NAME}:confg.json")
        assert "config.json" in str(raised.value.hint)


@pytest.mark.parametrize(
    "text",
    ["hf:model", "hf:a/b/c", "hf:a/b:", "hf:a/b:../c", "hf:a/b:/etc/passwd", "hf:a/b@sha256:" + "0" * 64],
)
def test_what_is_no_model_of_the_hub_is_refused(text: str) -> None:
    with pytest.raises(SourceError) as raised:
        parse_source(text)
    assert "hf:org/name" in str(raised.value.hint)
