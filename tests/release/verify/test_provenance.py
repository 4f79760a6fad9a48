"""The chain from a released file to its sources: each break is a problem."""

import json
import shutil
from pathlib import Path

import pytest

from fake_run import FakeRun
from meditron.release.verify.provenance import provenance_problems
from meditron.release.verify.verification import verify
from meditron.store.ancestry import GGUF_KEY, Training, untrained_ancestry, write_ancestry
from meditron.store.files import sha256_file
from meditron.store.gguf import write_gguf
from meditron.store.manifest import InputRecord, Manifest, fingerprint, record_files, write_manifest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return FakeRun(tmp_path / "small").folder


def test_a_whole_run_has_no_breaks(run: Path):
    for stage in ("corpus", "pretrain", "finetune", "quantize", "evaluate"):
        assert list(provenance_problems(run / stage)) == []


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_break_is_named(run: Path, tmp_path: Path):
    def problems(stage: str) -> str:
        found = list(provenance_problems(run / stage))
        assert found, stage
        return "\n".join(found)

    good = tmp_path / "good"
    shutil.copytree(run, good)

    def restore() -> None:
        shutil.rmtree(run)
        shutil.copytree(good, run)

    # A stage below was rebuilt after the stage was made from it.
    manifest = json.loads((run / "pretrain" / "manifest.json").read_text())
    changed = manifest["payload"] | {"seed": 99}
    edit(run / "pretrain" / "manifest.json", payload=changed, fingerprint=fingerprint(changed))
    text = problems("finetune")
    assert f"{run / 'finetune' / 'manifest.json'} (inputs." in text
    assert "was made from another pretrain than the one in" in text
    assert "was made from another pretrain" in problems("quantize")
    restore()
    # A manifest was edited.
    edit(run / "corpus" / "manifest.json", payload={"kind": "other"})
    assert "the fingerprint does not match the payload" in problems("quantize")
    restore()
    # A file of a stage below is missing.
    record = json.loads((run / "pretrain" / "manifest.json").read_text())["files"][0]
    (run / "pretrain" / record["path"]).unlink()
    assert f"{record['path']} is missing" in problems("quantize")
    assert verify(run / "quantize")["ok"] is False


def finished(folder: Path, inputs: dict[str, InputRecord]) -> Manifest:
    payload = {"kind": folder.name, "inputs": {key: each.digest for key, each in inputs.items()}}
    manifest = Manifest(
        kind=folder.name,
        name=folder.name,
        fingerprint=fingerprint(payload),
        payload=payload,
        config={},
        inputs=inputs,
        files=record_files(folder),
        started="2026-01-01T00:00:00Z",
        ended="2026-01-01T00:00:01Z",
    )
    write_manifest(folder, manifest)
    return manifest


def test_the_ancestry_of_a_file_continues_that_of_its_model(tmp_path: Path):
    training = Training(stage="pretrain", kind="pretrain", data="corpus", data_digest="a" * 64)
    ancestry = untrained_ancestry("base", "b" * 64).with_training(training)
    model = tmp_path / "run" / "pretrain"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    write_ancestry(model, ancestry)
    base = finished(model, {})
    folder = tmp_path / "run" / "quantize"
    for record, expected in [(ancestry, 0), (untrained_ancestry("other", "c" * 64), 1), (None, 1)]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        metadata = {"general.architecture": "llama"}
        if record is not None:
            metadata[GGUF_KEY] = record.model_dump_json()
        write_gguf(folder / "m.gguf", metadata, [])
        finished(folder, {"model": InputRecord(reference="pretrain", digest=base.digest)})
        problems = list(provenance_problems(folder))
        assert len(problems) == expected, problems
        assert all("does not continue that of" in problem for problem in problems)
        assert verify(folder / "m.gguf")["ok"] is (expected == 0)


def test_a_changed_source_and_a_changed_file_are_named(tmp_path: Path):
    source = tmp_path / "notes.txt"
    source.write_text("one")
    folder = tmp_path / "run" / "corpus"
    folder.mkdir(parents=True)
    write_gguf(folder / "m.gguf", {"general.architecture": "llama"}, [])
    finished(folder, {"notes": InputRecord(reference=str(source), digest=f"sha256:{sha256_file(source)}")})
    assert verify(folder)["ok"]
    source.write_text("two")
    (problem,) = verify(folder)["problems"]
    assert f"(inputs.notes): {source} has changed" in problem
    source.write_text("one")
    write_gguf(folder / "m.gguf", {"general.architecture": "mamba"}, [])
    assert any("has a different SHA-256" in problem for problem in verify(folder / "m.gguf")["problems"])
