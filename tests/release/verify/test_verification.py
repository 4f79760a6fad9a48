"""`verify`: good files pass, and each kind of damage is named with its file and place."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from meditron.core.errors import SourceError
from meditron.release.convert import convert
from meditron.release.gguf_split import split_gguf
from meditron.release.quantize import quantize
from meditron.release.verify.verification import verify
from meditron.store.checksums import write_checksums
from meditron.store.files import content_digest, sha256_file
from meditron.store.gguf import GGUF, write_gguf
from split_models import write_model
from tiny import tiny_hf


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture(scope="module")
def f16(hf: Path) -> Path:
    path = hf.parent / "tiny-F16.gguf"
    convert(str(hf), path)
    return path


@pytest.fixture(scope="module")
def quantized(hf: Path) -> Path:
    types = ("F32", "BF16", "Q8_0", "Q5_0", "Q4_0", "Q4_K_M", "Q6_K", "Q2_K")
    out = hf.parent / "quantized"
    quantize(str(hf), types, out)
    return out


def problem_of(path: Path) -> str:
    result = verify(path)
    assert result["ok"] is False
    assert len(result["problems"]) == 1, result["problems"]
    return result["problems"][0]


def test_good_files_have_no_problems(hf: Path, f16: Path, quantized: Path, tmp_path: Path):
    for path in (f16, *sorted(quantized.glob("*.gguf")), hf / "model.safetensors"):
        result = verify(path)
        assert (result["ok"], result["problems"]) == (True, [])
        assert result["sha256"] == sha256_file(path)
        assert result["files"] == {path.name: result["sha256"]}
    for folder in (hf, quantized):
        result = verify(folder)
        assert (result["ok"], result["problems"], result["signature"]) == (True, [], "none")
        assert result["sha256"] == content_digest(folder)
    whole = write_model(tmp_path / "m.gguf")
    files = split_gguf(whole, 2500)["files"]
    result = verify(Path(files[-1]["path"]))
    assert result["ok"], result["problems"]
    assert set(result["files"]) == {Path(file["path"]).name for file in files}


def test_a_missing_file_and_one_that_is_no_model(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file or folder"):
        verify(tmp_path / "x.gguf")
    (tmp_path / "note.txt").write_text("a note")
    assert "neither a GGUF nor a safetensors file" in problem_of(tmp_path / "note.txt")
    assert "contains no GGUF or safetensors file" in problem_of(tmp_path)
    (tmp_path / "empty.gguf").write_bytes(b"")
    assert "too short" in problem_of(tmp_path / "empty.gguf")


def rewritten(source: Path, out: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Copy a GGUF file with changed metadata and tensors."""
    with GGUF(source) as gguf:
        metadata = dict(gguf.metadata)
        tensors: dict[str, Any] = {name: gguf.dequantize(name) for name in gguf.tensors}
    change(metadata, tensors)
    write_gguf(out, metadata, tensors.items())
    return out


GGUF_DAMAGE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "scores": (lambda m, _: m.update({"tokenizer.ggml.scores": [0.0]}), r"scores\): has 1 values for 320"),
    "id": (lambda m, _: m.update({"tokenizer.ggml.bos_token_id": 320}), r"bos_token_id\): 320 is not the id"),
    "tokens": (lambda m, _: m["tokenizer.ggml.tokens"].pop(), "320"),
    "merge": (
        lambda m, _: m["tokenizer.ggml.merges"].insert(3, "three parts here"),
        r"merges\[3\]\): 'three parts here' is not a pair",
    ),
    "architecture": (
        lambda m, _: m.pop("general.architecture"),
        r"general.architecture\): the key is missing",
    ),
    "block": (
        lambda _, t: [t.pop(name) for name in list(t) if name.startswith("blk.1.")],
        r"blk.1\): no tensor of this block is stored; the model has 2 blocks",
    ),
    "many blocks": (lambda m, _: m.update({"llama.block_count": 2**31}), r"blk.2\): no tensor of this block"),
    "NaN": (
        lambda _, t: t["blk.0.attn_q.weight"].__setitem__((1, 2), np.nan),
        r"\(blk.0.attn_q.weight\): value 34: nan is not finite",
    ),
    "infinity": (lambda _, t: t["output_norm.weight"].__setitem__(3, -np.inf), "value 3: -inf is not finite"),
}


@pytest.mark.parametrize("case", GGUF_DAMAGE)
def test_a_contradiction_in_a_gguf_file_is_named(f16: Path, tmp_path: Path, case: str):
    change, message = GGUF_DAMAGE[case]
    result = verify(rewritten(f16, tmp_path / "x.gguf", change))
    assert result["ok"] is False
    assert any(re.search(message, problem) for problem in result["problems"]), result["problems"]
    assert all(str(tmp_path / "x.gguf") in problem for problem in result["problems"])


@pytest.mark.parametrize(
    ("kind", "bits", "message"),
    [
        ("Q8_0", 0x7C00, "block 2: inf is not finite"),
        ("Q4_0", 0x7E00, "block 2: nan is not finite"),
        ("Q5_0", 0x7BFF, "block 2: the scale gives values up to 1.05e[+]06, beyond F16"),
        ("BF16", 0x7F80, "value 2: inf is not finite"),
    ],
)
def test_a_damaged_scale_is_named(quantized: Path, tmp_path: Path, kind: str, bits: int, message: str):
    path = tmp_path / "x.gguf"
    shutil.copy(next(quantized.glob(f"*-{kind}.gguf")), path)
    with GGUF(path) as gguf:
        info = next(info for info in gguf.tensors.values() if info.type == kind and len(info.shape) == 2)
        size = gguf.raw_tensor(info.name).size // int(np.prod(info.shape)) or 1
        block = {"Q8_0": 34, "Q4_0": 18, "Q5_0": 22, "BF16": 2}[kind]
        assert size
    with path.open("r+b") as file:
        file.seek(info.offset + 2 * block)
        file.write(struct.pack("<H", bits))
    problem = problem_of(path)
    assert re.search(message, problem), problem
    assert f"{path} ({info.name})" in problem


def test_hidden_bytes_are_named(f16: Path, tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(f16.read_bytes() + bytes(100))
    assert "bytes after the last tensor" in problem_of(path)
    gap = tmp_path / "gap.gguf"
    name = b"a"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 1) + b"x"
    head += struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 8, 0, 64)
    head += bytes(-len(head) % 32)
    gap.write_bytes(head + bytes(96))
    assert f"(byte {len(head)}): 64 bytes before byte {len(head) + 64} belong to no tensor" in problem_of(gap)


def test_checksums_beside_the_files_are_compared(f16: Path, quantized: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(quantized, folder)
    names = sorted(file.name for file in folder.iterdir())
    write_checksums(folder, {name: sha256_file(folder / name) for name in names})
    assert verify(folder)["ok"]
    data = bytearray((folder / names[1]).read_bytes())
    data[-70] ^= 1
    (folder / names[1]).write_bytes(data)
    assert f"{folder / names[1]}: SHA-256 is" in problem_of(folder / names[1])
    assert verify(folder / names[0])["ok"]
    shutil.copy(quantized / names[1], folder)
    (folder / names[0]).unlink()
    assert f"SHA256SUMS ({names[0]}): the file is missing" in problem_of(folder)
    (folder / "SHA256SUMS").write_text("nonsense\n")
    assert "line 1): not a line of sha256sum" in problem_of(folder)


def test_a_damaged_safetensors_header_is_named(hf: Path, tmp_path: Path):
    good = (hf / "model.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    path = tmp_path / "model.safetensors"

    def with_header(text: bytes) -> None:
        path.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + length :])

    for damage in (
        lambda: path.write_bytes(good[:-1]),
        lambda: path.write_bytes(good + b"x"),
        lambda: path.write_bytes(struct.pack("<Q", 2**63) + good[8:]),
        lambda: path.write_bytes(good[:5]),
        lambda: path.write_bytes(b""),
        lambda: with_header(b"[" * 100_000),
        lambda: with_header(
            json.dumps(header | {name: header[name] | {"data_offsets": [0, 2**62]}}).encode()
        ),
        lambda: with_header(json.dumps(header | {name: header[name] | {"dtype": "F7"}}).encode()),
        lambda: with_header(b'{"x": 1, ' + json.dumps(header).encode()[1:]),
        lambda: with_header(json.dumps(header).encode()[:-1] + b', "' + name.encode() + b'": {}}'),
    ):
        damage()
        problem = problem_of(path)
        assert problem.startswith(f"{path} (byte "), problem


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite_is_named_in_safetensors(tmp_path: Path, dtype: type):
    values = np.ones((5, 7), dtype)
    values[3, 2] = np.inf
    save_file({"good": np.ones(3, dtype), "bad": values}, tmp_path / "x.safetensors")
    assert "(bad): value 23 is not finite" in problem_of(tmp_path / "x.safetensors")


def test_an_index_agrees_with_its_files(hf: Path, tmp_path: Path):
    """Fault of huggingface_hub (#4725): an index with a tensor that its file lacks was accepted."""
    folder = tmp_path / "hf"
    folder.mkdir()
    for part, names in (("a", ["x", "y"]), ("b", ["z"])):
        save_file({name: np.ones(4, np.float32) for name in names}, folder / f"{part}.safetensors")
    index = folder / "model.safetensors.index.json"
    good = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    for changes, message in [
        ({}, None),
        ({"w": "b.safetensors"}, r"(w): is not in b.safetensors"),
        ({"z": "c.safetensors"}, "c.safetensors is missing"),
        ({"y": None}, "(y): the index has it nowhere"),
        ({"z": "../b.safetensors"}, "'../b.safetensors' is not a file of this folder"),
    ]:
        entries = {name: file for name, file in (good | changes).items() if file}
        index.write_text(json.dumps({"weight_map": entries}))
        problems = verify(folder)["problems"]
        assert problems == [] if message is None else any(message in each for each in problems), problems
    index.write_text('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}')
    assert "duplicate key" in problem_of(folder)


def test_vocabulary_config_and_tokenizer_agree(hf: Path, tmp_path: Path):
    folder = tmp_path / "hf"
    shutil.copytree(hf, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    assert "config.json (vocab_size): 400, but model.embed_tokens.weight has 320 rows" in problem_of(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 320, "content": "<new>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "(added_tokens['<new>']): id 320 is not one of the model's 320" in problem_of(folder)


def test_an_embedding_without_rows_is_named(tmp_path: Path):
    save_file({"model.embed_tokens.weight": np.zeros((), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"vocab_size": 8}')
    [problem] = verify(tmp_path)["problems"]
    assert "(model.embed_tokens.weight): has the shape [], not rows and columns" in problem
