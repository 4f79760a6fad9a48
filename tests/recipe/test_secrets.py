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

from counting import STAGES, Bench
from meditron.core.errors import DriftError, MeditronError
from meditron.evaluate.config import EvaluateConfig
from meditron.recipe import load_recipe, run_recipe, status
from meditron.recipe.plan import plan
from meditron.recipe.registry import STAGES as REAL
from meditron.store.manifest import fingerprint, read_manifest
from store.conftest import serving
from store.web import Site

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
    """Files, or names of files, that hold one of the words."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".zst":
            content = zstandard.ZstdDecompressor().stream_reader(content).read()
        if any(word in str(path.relative_to(folder)) or word.encode() in content for word in words):
            found.append(str(path))
    return found


def test_nothing_of_a_run_holds_a_sources_secret_or_an_absolute_path(
    bench: Bench, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    source = publish(site, "text.txt", b"the heart\nthe lung\n")
    result = bench.run(f'words.text="{source}"')
    dry = bench.run(f'words.text="{source}"', dry_run=True)
    told = json.dumps([result.to_json(), dry.to_json(), status(bench.load(), out=bench.out).to_json()])
    assert SECRET not in told + "".join(capfd.readouterr())
    assert not leaks(bench.out, (SECRET, str(bench.folder)))
    assert not leaks(bench.folder / "cache", (SECRET,))
    words = read_manifest(bench.run_folder / "words")
    assert words is not None
    assert words.inputs["text"].reference == words.config["text"] == f"{site.url}/text.txt"


def test_a_renewed_signature_is_no_drift_and_another_file_is(bench: Bench, site: Site) -> None:
    source = publish(site, "text.txt", b"the heart\nthe lung\n")
    bench.run(f'words.text="{source}"')
    assert bench.run(f'words.text="{signed(site, "text.txt", "RENEWED")}"').built == []
    with pytest.raises(DriftError, match=r"inputs\.text"):
        bench.run(f'words.text="{source}&file=b"')


def test_no_record_of_a_failure_holds_a_secret(
    bench: Bench, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MeditronError) as failed:
        bench.run(f'words.text="{signed(site, "gone.txt")}"')
    assert SECRET not in f"{failed.value} {failed.value.hint}" + "".join(capfd.readouterr())
    assert not leaks(bench.folder, (SECRET,))
    assert "no such file" in str(status(bench.load(), out=bench.out).stages["words"].failure)


def test_a_real_stage_over_files_by_absolute_path_records_their_names(tmp_path: Path, site: Site) -> None:
    rows = "".join(json.dumps({"id": f"{i}", "text": f"number {i} " * 30}) + "\n" for i in range(20))
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


def test_inputs_named_by_their_sources_are_named_by_what_is_recorded(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.jsonl").write_text(folder)
    asked = [f"{tmp_path}/a/q.jsonl", f"{tmp_path}/b/q.jsonl", "https://h/q.jsonl?token=1"]
    asked.append(f"{tmp_path}/c/q.jsonl")
    models = ["init:tiny", f"https://me:{SECRET}@h/m.gguf?sig={SECRET}", "https://h/m.gguf?file=2"]
    pair = f"{{model = '{models[1]}', against = '{models[0]}'}}"
    (tmp_path / "x.toml").write_text(
        f"[corpus.sources.own]\nfrom = '{tmp_path}/a/q.jsonl'\n"
        f"[evaluate]\nmodels = {models}\ntasks = {asked}\nfidelity = [{pair}]\n"
    )
    standing = plan(load_recipe(tmp_path / "x.toml"), tmp_path)["evaluate"]
    config = standing.step.config
    assert isinstance(config, EvaluateConfig)
    assert config.tasks == ("file:q.jsonl", "file:q.jsonl (2)", "https://h/q.jsonl", "file:q.jsonl (3)")
    assert config.models == ("init:tiny", "https://h/m.gguf", "https://h/m.gguf (2)")
    assert config.fidelity[0].model == "https://h/m.gguf"
    assert set(standing.inputs) == {*config.tasks, *config.models, "corpus"} == set(config.inputs())
    assert standing.inputs["https://h/m.gguf"].source == models[1]


def explode(config: Any, inputs: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Run out of memory as torch does."""
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")


def test_out_of_memory_names_the_keys_to_lower(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counting.words", explode)
    with pytest.raises(MeditronError, match="words: out of memory: DefaultCPUAllocator") as failed:
        bench.run()
    assert failed.value.hint == "lower words.threads"
    monkeypatch.setattr("counting.words", lambda *_: bytearray(1 << 60))
    with pytest.raises(MeditronError, match="words: out of memory: an allocation failed"):
        bench.run()


@pytest.mark.parametrize("stage", [stage for stage in REAL if stage.kind in ("pretrain", "finetune")])
def test_training_names_its_batch(stage: Any) -> None:
    from meditron.recipe.run import _MEMORY_KEYS

    assert {"batch_size", "micro_batch_size", "sequence_length"} <= set(stage.config.model_fields)
    assert {"batch_size", "micro_batch_size", "sequence_length"} <= set(_MEMORY_KEYS)


def test_a_run_beside_a_linked_lock_leaves_its_target_alone(bench: Bench) -> None:
    victim = bench.folder / "victim"
    victim.write_text("precious")
    bench.run_folder.mkdir(parents=True)
    (bench.run_folder / ".lock").symlink_to(victim)
    with pytest.raises(MeditronError, match=r"\.lock: not a lock file"):
        bench.run()
    assert victim.read_text() == "precious"
    (bench.run_folder / ".lock").unlink()
    assert bench.run().built


@pytest.mark.parametrize("target", ["full", "empty", "missing", "file"])
def test_a_linked_stage_is_never_worked_in_and_a_rebuild_replaces_the_link(bench: Bench, target: str) -> None:
    theirs = bench.folder / "theirs"
    if target == "file":
        theirs.write_text("keep")
    elif target != "missing":
        theirs.mkdir()
    if target == "full":
        (theirs / "keep.txt").write_text("keep")
    bench.run_folder.mkdir(parents=True)
    (bench.run_folder / "words").symlink_to(theirs)
    with pytest.raises(DriftError, match="words is damaged: folder: a folder → a link"):
        bench.run()
    assert "words" in bench.run(rebuild=["words"]).built
    assert not (bench.run_folder / "words").is_symlink()
    assert bench.run().built == []
    left = {"full": "keep", "file": "keep"}.get(target)
    kept = theirs / "keep.txt" if target == "full" else theirs
    assert left is None or kept.read_text() == left
    assert target != "empty" or not list(theirs.iterdir())


def test_a_rebuild_of_a_link_that_was_cut_short_goes_on(bench: Bench) -> None:
    theirs = bench.folder / "theirs"
    theirs.mkdir()
    (theirs / "keep.txt").write_text("keep")
    bench.run_folder.mkdir(parents=True)
    (bench.run_folder / ".removed-words-1").symlink_to(theirs)
    assert "words" in bench.run().built
    assert [path.name for path in theirs.iterdir()] == ["keep.txt"]
    assert not list(bench.run_folder.glob(".removed-*"))


def test_a_finished_stage_behind_a_link_is_used(bench: Bench) -> None:
    bench.run()
    moved = bench.folder / "disk"
    (bench.run_folder / "words").rename(moved)
    (bench.run_folder / "words").symlink_to(moved)
    assert bench.run().built == []


def test_a_stage_that_made_nothing_is_begun_anew_for_whatever_it_is_now(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.text.write_text("poison\n")
    with pytest.raises(MeditronError, match="a poisoned line"):
        bench.run()
    assert status(bench.load("words.upper=true"), out=bench.out).stages["words"].state == "failed"
    bench.text.write_text("the heart\n")
    decided = bench.run("words.upper=true", dry_run=True).decisions["words"]
    assert (decided.action, "a poisoned line" in decided.why) == ("build", True)
    capfd.readouterr()
    result = bench.run("words.upper=true")
    assert "words: begins" in capfd.readouterr().err
    assert result.stages["words"].metrics["attempts"] == 1
    assert bench.run("words.upper=true").built == []


def test_damaged_records_of_a_stage_that_made_nothing_are_none(bench: Bench) -> None:
    for name in ("begun.json", "failed.json"):
        (bench.run_folder / "words").mkdir(parents=True, exist_ok=True)
        (bench.run_folder / "words" / name).write_bytes(b"[" * 9_000)
    assert not status(bench.load(), out=bench.out).sound
    assert "words" in bench.run().built


def test_a_stage_that_made_something_still_needs_its_rebuild(bench: Bench) -> None:
    bench.text.write_text("the heart\npoison\n")
    with pytest.raises(MeditronError, match="a poisoned line"):
        bench.run()
    with pytest.raises(DriftError, match="begun for something else"):
        bench.run("words.upper=true")


def test_status_verifies_the_bytes_of_an_input_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDITRON_CACHE", str(bench.folder / "cache"))
    monkeypatch.setattr("meditron.store.files._SETTLED_NS", 0)
    bench.text.write_text("the heart\n" * (1 << 17))
    bench.stages = STAGES
    monkeypatch.setattr(
        "counting.words", lambda config, inputs, out: (out / "000.json").write_text("{}") and {}
    )
    bench.run()
    for record in (bench.folder / "cache/digests").iterdir():
        known = json.loads(record.read_text())
        record.write_text(json.dumps(known | {"sha256": "f" * 64}))
    assert not status(bench.load(), out=bench.out).sound
    assert status(bench.load(), out=bench.out, verify=True).sound


def test_a_killed_runs_lock_is_free_and_keeps_its_file(bench: Bench) -> None:
    code = (
        "import os, sys; from pathlib import Path; from meditron.recipe.lock import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(bench.run_folder)], check=False, env=os.environ
        )
        assert done.returncode == -9
    assert (bench.run_folder / ".lock").is_file()
    assert bench.run().built


def test_a_record_of_an_earlier_version_tells_no_secret(bench: Bench, site: Site) -> None:
    source = publish(site, "text.txt", b"the heart\n")
    bench.run(f'words.text="{source}"')
    path = bench.run_folder / "words/manifest.json"
    known = json.loads(path.read_text())
    known["payload"]["config"]["text"] = source
    path.write_text(json.dumps(known | {"fingerprint": fingerprint(known["payload"])}))
    looked = status(bench.load(f'words.text="{source}"'), out=bench.out)
    assert [one.field for one in looked.stages["words"].drift] == ["text"]
    assert SECRET not in json.dumps(looked.to_json())


def test_a_report_is_not_written_through_a_link(bench: Bench) -> None:
    victim = bench.folder / "victim"
    victim.write_text("precious")
    bench.run_folder.mkdir(parents=True)
    for name in ("report.html", ".report.html.part", "report.json"):
        (bench.run_folder / name).symlink_to(victim)
    bench.run()
    assert victim.read_text() == "precious"
    assert not (bench.run_folder / "report.html").is_symlink()
