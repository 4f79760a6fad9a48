"""`split`, `join` and `verify` as they are typed."""

import json
from pathlib import Path

import pytest

from command import Command
from meditron.store.files import sha256_file
from split_models import write_model


def test_split_join_and_verify(meditron: Command, tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m.gguf")
    said = meditron("split", whole, "--max-size", "2.5K", "--json")
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    paths = [Path(file["path"]) for file in answer["files"]]
    assert paths[0].name == f"m-00001-of-0000{len(paths)}.gguf"
    assert answer["kind"] == "gguf-split"
    said = meditron("join", *paths, "--out", tmp_path / "again.gguf")
    assert said.code == 0, said.err
    assert said.out == f"{sha256_file(whole)}  {tmp_path / 'again.gguf'}\n"
    assert "again.gguf" in said.err
    said = meditron("verify", tmp_path / "again.gguf", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["sha256"] == sha256_file(whole)
    said = meditron("verify", paths[0])
    assert (said.code, said.out) == (0, f"{sha256_file(paths[0])}  {paths[0]}\n")


def test_plain_pieces(meditron: Command, tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m.gguf")
    said = meditron("split", whole, "--max-size", "3000", "--plain")
    assert said.code == 0, said.err
    assert said.out.splitlines()[1].endswith("m.gguf-split-b")
    before = whole.read_bytes()
    whole.unlink()
    assert meditron("join", tmp_path / "m.gguf-split-b").code == 0
    assert whole.read_bytes() == before
    again = meditron("join", tmp_path / "m.gguf-split-b")
    assert again.code == 2
    assert "exists, and is never overwritten" in again.err


def test_problems_exit_with_1_and_wrong_use_with_2(meditron: Command, tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m.gguf")
    whole.write_bytes(whole.read_bytes()[:-64])
    said = meditron("verify", whole)
    assert (said.code, said.out) == (1, "")
    assert f"error: {whole} (byte " in said.err
    assert "Traceback" not in said.err
    said = meditron("verify", whole, "--json")
    answer = json.loads(said.out)
    assert (said.code, answer["ok"], len(answer["problems"])) == (1, False, 1)
    assert meditron("verify", tmp_path / "nothing.gguf").code == 2
    assert meditron("join").code == 2
    assert meditron("split", whole).code == 2


@pytest.mark.parametrize("size", ["0", "-5", "M", "5 bananas", "1e3", "0.1", ""])
def test_a_size_that_is_none_is_refused(meditron: Command, tmp_path: Path, size: str) -> None:
    whole = write_model(tmp_path / "m.gguf")
    said = meditron("split", whole, f"--max-size={size}")
    assert said.code == 2
    assert "--max-size" in said.err
