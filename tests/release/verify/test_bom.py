"""The bill of materials, against CycloneDX's own reader."""

import json
from pathlib import Path

import pytest

from fake_run import BASE, FakeRun
from meditron.core.errors import UsageError
from meditron.release.verify.bom import write_bom
from meditron.store.manifest import read_manifest

pytest.importorskip("cyclonedx", reason="needs the extra bom")

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import ComponentType


def test_the_bill_lists_files_stages_sources_and_libraries(tmp_path: Path):
    folder = FakeRun(tmp_path / "small").folder / "quantize"
    out = tmp_path / "bom.cdx.json"
    write_bom(folder, out)
    manifest = read_manifest(folder)
    assert manifest is not None
    content = json.loads(out.read_text())
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")
    bom = Bom.from_json(content)
    bom.validate()
    released = bom.metadata.component
    assert released is not None
    assert (released.name, released.type) == ("small/quantize", ComponentType.MACHINE_LEARNING_MODEL)
    listed = {file.name: file.hashes[0].content for file in released.components}
    assert listed == {record.path: record.sha256 for record in manifest.files if record.content}
    names = {component.name: component for component in bom.components}
    assert names["small/corpus"].type == ComponentType.DATA
    assert names["small/pretrain"].type == ComponentType.MACHINE_LEARNING_MODEL
    assert names[BASE].type == ComponentType.MACHINE_LEARNING_MODEL
    assert set(manifest.libraries) <= set(names)
    dependencies = {entry["ref"]: entry.get("dependsOn", []) for entry in content["dependencies"]}
    assert "stage:finetune" in dependencies["stage:quantize"]
    assert "stage:pretrain" in dependencies["stage:finetune"]
    again = tmp_path / "again.json"
    write_bom(folder, again)
    assert again.read_bytes() == out.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        write_bom(folder, out)
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        write_bom(tmp_path, tmp_path / "third.json")
