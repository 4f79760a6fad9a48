"""A run's outputs, its cache and all that it prints: no secret of a source, no absolute path."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from meditron.core.errors import DriftError, MeditronError
from meditron.evaluate.config import EvaluateConfig
from meditron.recipe import load_recipe, run_recipe, status
from meditron.recipe.registry import STAGES as REAL
from meditron.recipe.stage_status import recipe_status
from meditron.store.manifest import fingerprint, read_manifest
from store.conftest import serving
from store.web import Site
from toy_stages import STAGES, ToyRun

SECRET = "TOPSECRET"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("meditron.store.download._PAUSES", ())
    with serving("http") as held:
        yield held


def signed(site: Site, name: str, token: str = SECRET) -> str:
    return f"{site.url.replace('//', f'//me:{SECRET}@')}/{name}?X-Amz-Signature={token}"


def publish(site: Site, name: str, content: bytes) -> str:
    site.files[f"{name}?X-Amz-Signature={SECRET}"] = content
    return signed(site, name)


def leaks(folder: Path, words: tuple[str, ...]) -> list[str]:
    """Return the files whose name or content has one of the words."""
    leaking = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".zst":
            content = zstandard.ZstdDecompressor().stream_reader(content).read()
        if any(word in str(path.relative_to(folder)) or word.encode() in content for word in words):
            leaking.append(str(path))
    return leaking


def test_nothing_of_a_run_holds_a_sources_secret_or_an_absolute_path(
    toy: ToyRun, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    source = publish(site, "text.txt", b"the heart\nthe lung\n")
    result = toy.run(f'words.text="{source}"')
    dry = toy.run(f'words.text="{source}"', dry_run=True)
    output = json.dumps([result.to_json(), dry.to_json(), status(toy.load(), out=toy.out).to_json()])
    assert SECRET not in output + "".join(capfd.readouterr())
    assert not leaks(toy.out, (SECRET, str(toy.folder)))
    assert not leaks(toy.folder / "cache", (SECRET,))
    words = read_manifest(toy.run_folder / "words")
    assert words is not None
    assert words.inputs["text"].reference == words.config["text"] == f"{site.url}/text.txt"


def test_a_renewed_signature_is_no_drift_and_another_file_is(toy: ToyRun, site: Site) -> None:
    source = publish(site, "text.txt", b"the heart\nthe lung\n")
    toy.run(f'words.text="{source}"')
    assert toy.run(f'words.text="{signed(site, "text.txt", "RENEWED")}"').built_stages == []
    with pytest.raises(DriftError, match=r"inputs\.text"):
        toy.run(f'words.text="{source}&file=b"')


def test_no_record_of_a_failure_holds_a_secret(
    toy: ToyRun, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MeditronError) as failed:
        toy.run(f'words.text="{signed(site, "gone.txt")}"')
    assert SECRET not in f"{failed.value} {failed.value.hint}" + "".join(capfd.readouterr())
    assert not leaks(toy.folder, (SECRET,))
    assert "no such file" in str(status(toy.load(), out=toy.out).stages["words"].failure)


def test_a_corpus_of_files_with_absolute_paths_records_their_names(tmp_path: Path, site: Site) -> None:
    rows = "".join(
        json.dumps(
            {
                "id": f"{i}",
                "text": f"This is the number {i} of the list of all rows, and it is not long. " * 2,
            }
        )
        + "\n"
        for i in range(20)
    )
    (tmp_path / "own.jsonl").write_text(rows)
    source = publish(site, "web.jsonl", rows.replace("number", "figure").encode())
    (tmp_path / "x.toml").write_text(
        f'[corpus.sources.own]\nfrom = "{tmp_path}/own.jsonl"\n[corpus.sources.web]\nfrom = "{source}"\n'
    )
    recipe = load_recipe(tmp_path / "x.toml")
    assert not run_recipe(recipe, out=tmp_path / "runs", dry_run=True).problems
    run_recipe(recipe, out=tmp_path / "runs")
    assert not leaks(tmp_path / "runs", (SECRET, str(tmp_path)))
    manifest = read_manifest(tmp_path / "runs/x/corpus")
    assert manifest is not None
    assert manifest.inputs["own"].reference == manifest.config["sources"]["own"]["from"] == "file:own.jsonl"


def test_inputs_named_by_their_sources_have_the_recorded_names(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.jsonl").write_text(folder)
    tasks = [f"{tmp_path}/a/q.jsonl", "https://h/q.jsonl?token=1"]
    models = [
        "init:tiny",
        f"{tmp_path}/c/q.jsonl",
        f"https://me:{SECRET}@h/m.gguf?sig={SECRET}",
        "https://h/m.gguf?file=2",
    ]
    pair = f"{{model = '{models[2]}', against = '{models[0]}'}}"
    (tmp_path / "x.toml").write_text(
        f"[corpus.sources.own]\nfrom = '{tmp_path}/a/q.jsonl'\n"
        f"[evaluate]\nmodels = {models}\ntasks = {tasks}\n"
        f"shots = 1\nshots_from = '{tmp_path}/b/q.jsonl'\nfidelity = [{pair}]\n"
    )
    stage = recipe_status(load_recipe(tmp_path / "x.toml"), tmp_path)["evaluate"]
    config = stage.spec.config
    assert isinstance(config, EvaluateConfig)
    assert config.tasks == ("file:q.jsonl (2)", "https://h/q.jsonl")
    assert config.shots_from == "file:q.jsonl (3)"
    assert config.models == ("init:tiny", "file:q.jsonl", "https://h/m.gguf", "https://h/m.gguf (2)")
    assert config.fidelity[0].model == "https://h/m.gguf"
    assert (
        set(stage.inputs)
        == {*config.tasks, config.shots_from, *config.models, "corpus"}
        == set(config.inputs())
    )
    assert stage.inputs["https://h/m.gguf"].source == models[2]


def explode(config: Any, inputs: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Run out of memory as torch does."""
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")


def test_out_of_memory_names_the_keys_to_lower(toy: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy_stages.words", explode)
    with pytest.raises(MeditronError, match="words: out of memory: DefaultCPUAllocator") as failed:
        toy.run()
    assert failed.value.hint == "lower words.threads"
    monkeypatch.setattr("toy_stages.words", lambda *_: bytearray(1 << 60))
    with pytest.raises(MeditronError, match="words: out of memory: an allocation failed"):
        toy.run()


@pytest.mark.parametrize("stage", [stage for stage in REAL if stage.kind in ("pretrain", "finetune")])
def test_the_keys_to_lower_are_keys_of_training(stage: Any) -> None:
    from meditron.recipe.build import _MEMORY_KEYS

    assert {"batch_size", "micro_batch_size", "sequence_length"} <= set(stage.config.model_fields)
    assert {"batch_size", "micro_batch_size", "sequence_length"} <= set(_MEMORY_KEYS)


def test_a_linked_lock_file_is_refused_and_its_target_kept(toy: ToyRun) -> None:
    victim = toy.folder / "victim"
    victim.write_text("precious")
    toy.run_folder.mkdir(parents=True)
    (toy.run_folder / ".lock").symlink_to(victim)
    with pytest.raises(MeditronError, match=r"\.lock: not a lock file"):
        toy.run()
    assert victim.read_text() == "precious"
    (toy.run_folder / ".lock").unlink()
    assert toy.run().built_stages


@pytest.mark.parametrize("target", ["full", "empty", "missing", "file"])
def test_a_linked_stage_is_refused_and_a_rebuild_replaces_the_link(toy: ToyRun, target: str) -> None:
    target_path = toy.folder / "target_path"
    if target == "file":
        target_path.write_text("keep")
    elif target != "missing":
        target_path.mkdir()
    if target == "full":
        (target_path / "keep.txt").write_text("keep")
    toy.run_folder.mkdir(parents=True)
    (toy.run_folder / "words").symlink_to(target_path)
    with pytest.raises(DriftError, match="words is damaged: folder: a folder → a link"):
        toy.run()
    assert "words" in toy.run(rebuild=["words"]).built_stages
    assert not (toy.run_folder / "words").is_symlink()
    assert toy.run().built_stages == []
    left = {"full": "keep", "file": "keep"}.get(target)
    kept = target_path / "keep.txt" if target == "full" else target_path
    assert left is None or kept.read_text() == left
    assert target != "empty" or not list(target_path.iterdir())


def test_an_interrupted_rebuild_of_a_link_continues(toy: ToyRun) -> None:
    target_path = toy.folder / "target_path"
    target_path.mkdir()
    (target_path / "keep.txt").write_text("keep")
    toy.run_folder.mkdir(parents=True)
    (toy.run_folder / ".words.12345678.tmp").symlink_to(target_path)
    assert "words" in toy.run().built_stages
    assert [path.name for path in target_path.iterdir()] == ["keep.txt"]
    assert not list(toy.run_folder.glob(".*.tmp"))


def test_a_finished_stage_behind_a_link_is_used(toy: ToyRun) -> None:
    toy.run()
    moved = toy.folder / "disk"
    (toy.run_folder / "words").rename(moved)
    (toy.run_folder / "words").symlink_to(moved)
    assert toy.run().built_stages == []


def test_a_stage_without_files_begins_again_with_any_config(
    toy: ToyRun, capfd: pytest.CaptureFixture[str]
) -> None:
    toy.text.write_text("poison\n")
    with pytest.raises(MeditronError, match="a poisoned line"):
        toy.run()
    assert status(toy.load("words.upper=true"), out=toy.out).stages["words"].state == "failed"
    toy.text.write_text("the heart\n")
    decision = toy.run("words.upper=true", dry_run=True).decisions["words"]
    assert (decision.action, "a poisoned line" in decision.why) == ("build", True)
    capfd.readouterr()
    result = toy.run("words.upper=true")
    assert "stage 1 of 4: words\n" in capfd.readouterr().err
    assert result.stages["words"].metrics["attempts"] == 1
    assert toy.run("words.upper=true").built_stages == []


def test_damaged_records_of_a_stage_without_files_are_ignored(toy: ToyRun) -> None:
    for name in ("in_progress.json", "failed.json"):
        (toy.run_folder / "words").mkdir(parents=True, exist_ok=True)
        (toy.run_folder / "words" / name).write_bytes(b"[" * 9_000)
    assert not status(toy.load(), out=toy.out).none_stale_or_failed
    assert "words" in toy.run().built_stages


def test_a_failed_stage_with_files_needs_a_rebuild_for_another_config(toy: ToyRun) -> None:
    toy.text.write_text("the heart\npoison\n")
    with pytest.raises(MeditronError, match="a poisoned line"):
        toy.run()
    with pytest.raises(DriftError, match="words is unfinished, and its config or inputs changed"):
        toy.run("words.upper=true")


def test_status_verify_reads_the_bytes_of_inputs(toy: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDITRON_CACHE", str(toy.folder / "cache"))
    monkeypatch.setattr("meditron.store.files._SETTLED_NS", 0)
    toy.text.write_text("the heart\n" * (1 << 17))
    toy.stages = STAGES
    monkeypatch.setattr(
        "toy_stages.words", lambda config, inputs, out: (out / "000.json").write_text("{}") and {}
    )
    toy.run()
    for record in (toy.folder / "cache/digests").iterdir():
        known = json.loads(record.read_text())
        record.write_text(json.dumps(known | {"sha256": "f" * 64}))
    assert not status(toy.load(), out=toy.out).none_stale_or_failed
    assert status(toy.load(), out=toy.out, verify=True).none_stale_or_failed


def test_the_lock_of_a_killed_run_is_free(toy: ToyRun) -> None:
    code = (
        "import os, sys; from pathlib import Path; from meditron.recipe.run import exclusive_run\n"
        "with exclusive_run(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(toy.run_folder)], check=False, env=os.environ)
        assert done.returncode == -9
    assert (toy.run_folder / ".lock").is_file()
    assert toy.run().built_stages


def test_drift_from_a_record_of_an_earlier_version_shows_no_secret(toy: ToyRun, site: Site) -> None:
    source = publish(site, "text.txt", b"the heart\n")
    toy.run(f'words.text="{source}"')
    path = toy.run_folder / "words/manifest.json"
    known = json.loads(path.read_text())
    known["payload"]["config"]["text"] = source
    path.write_text(json.dumps(known | {"fingerprint": fingerprint(known["payload"])}))
    current = status(toy.load(f'words.text="{source}"'), out=toy.out)
    assert [change.field for change in current.stages["words"].drift] == ["text"]
    assert SECRET not in json.dumps(current.to_json())


def test_a_report_is_not_written_through_a_link(toy: ToyRun) -> None:
    victim = toy.folder / "victim"
    victim.write_text("precious")
    toy.run_folder.mkdir(parents=True)
    for name in ("report.html", ".report.html.part", "report.json"):
        (toy.run_folder / name).symlink_to(victim)
    toy.run()
    assert victim.read_text() == "precious"
    assert not (toy.run_folder / "report.html").is_symlink()
