"""Signatures of OpenSSF's model signing, against its own command line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from meditron.core.errors import SourceError, UsageError
from meditron.release.gguf_split import split_gguf
from meditron.release.verify.signature import sign, signature_state
from meditron.release.verify.verification import verify
from split_models import write_model

pytest.importorskip("model_signing", reason="needs the extra signing")
pytest.importorskip("OpenSSL", reason="needs the extra signing")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa


def write_keys(folder: Path, name: str, private=None) -> tuple[Path, Path]:
    private = private or ec.generate_private_key(ec.SECP256R1())
    key, public = folder / f"{name}.pem", folder / f"{name}.pub"
    encoding = serialization.Encoding.PEM
    key.write_bytes(
        private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(encoding, form))
    return key, public


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "release").mkdir()
    write_model(tmp_path / "release" / "m.gguf")
    (tmp_path / "release" / "README.md").write_text("# A model")
    return tmp_path / "release"


def test_a_signed_folder_verifies_and_every_change_is_refused(folder: Path, tmp_path: Path):
    key, public = write_keys(tmp_path, "mine")
    assert sign(folder, key) == folder / "model.sig"
    assert (folder / "SHA256SUMS").is_file()
    result = verify(folder, public)
    assert (result["ok"], result["signature"], result["problems"]) == (True, "verified", [])
    unchecked = verify(folder)
    assert (unchecked["ok"], unchecked["signature"]) == (True, "not checked")
    assert unchecked["notes"]
    good = folder.with_name("good")
    shutil.copytree(folder, good)

    def refuses(change, message: str) -> None:
        shutil.rmtree(folder)
        shutil.copytree(good, folder)
        change()
        state, problems = signature_state(folder, public)
        assert (state, len(problems)) == ("failed", 1)
        assert message in problems[0]
        assert verify(folder, public)["ok"] is False

    refuses(lambda: (folder / "README.md").write_text("# B model"), "Hash mismatch for 'README.md'")
    refuses(lambda: (folder / "new.txt").write_text("x"), "Extra files")
    refuses(lambda: (folder / "README.md").unlink(), "Missing files")
    refuses(lambda: (folder / "model.sig").write_text("{}"), "the signature does not match")
    refuses(lambda: (folder / "model.sig").write_bytes(b"\xff" * 100), "the signature does not match")
    text = (good / "model.sig").read_text()
    at = text.index('"payload"') + 40
    changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    refuses(lambda: (folder / "model.sig").write_text(changed), "the signature does not match")
    other = write_keys(tmp_path, "other")[1]
    state, problems = signature_state(good, other)
    assert state == "failed"
    assert "does not match" in problems[0]


def test_one_file_has_its_signature_beside_it(folder: Path, tmp_path: Path):
    key, public = write_keys(tmp_path, "mine")
    file = folder / "m.gguf"
    assert sign(file, key) == folder / "m.gguf.sig"
    assert verify(file, public)["signature"] == "verified"
    with file.open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"\x01")
    assert verify(file, public)["signature"] == "failed"


def test_files_of_git_are_signed_and_those_that_the_hub_adds_are_not(folder: Path, tmp_path: Path):
    key, public = write_keys(tmp_path, "mine")
    (folder / ".gitignore").write_text("*.tmp")
    sign(folder, key)
    assert signature_state(folder, public) == ("verified", [])
    (folder / ".gitattributes").write_text("*.gguf filter=lfs")
    (folder / ".cache/huggingface/download").mkdir(parents=True)
    (folder / ".cache/huggingface/download/m.gguf.metadata").write_text("etag")
    assert signature_state(folder, public) == ("verified", [])
    for name in (".git/config", ".github/modeling.py", ".cache/other"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("added")
        state, [problem] = signature_state(folder, public)
        assert state == "failed"
        assert name in problem
        (folder / name).unlink()


@pytest.mark.parametrize("algorithm", ["sha256", "blake2"])
def test_signatures_of_shards_and_of_other_hashes_verify(folder: Path, tmp_path: Path, algorithm: str):
    from model_signing import hashing, signing

    key, public = write_keys(tmp_path, "mine")
    shards = hashing.Config().use_shard_serialization(hashing_algorithm=algorithm, shard_size=1000)
    shards.set_ignored_paths(paths=["model.sig"], ignore_git_paths=False)
    config = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(shards)
    config.sign(folder, folder / "model.sig")
    assert signature_state(folder, public) == ("verified", [])
    with (folder / "m.gguf").open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"\x01")
    assert signature_state(folder, public)[0] == "failed"


def test_a_signature_that_allows_links_verifies_what_they_lead_to(folder: Path, tmp_path: Path):
    from model_signing import hashing, signing

    key, public = write_keys(tmp_path, "mine")
    (tmp_path / "blob").write_text("weights")
    (folder / "weights.bin").symlink_to(tmp_path / "blob")
    files = hashing.Config().use_file_serialization(allow_symlinks=True).set_allow_symlinks(True)
    files.set_ignored_paths(paths=["model.sig"], ignore_git_paths=False)
    config = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(files)
    config.sign(folder, folder / "model.sig")
    assert signature_state(folder, public) == ("verified", [])
    (tmp_path / "blob").write_text("changed")
    assert signature_state(folder, public)[0] == "failed"


def test_checksums_do_not_have_the_file_that_the_hub_adds(folder: Path, tmp_path: Path):
    (folder / ".gitattributes").write_text("*.gguf filter=lfs")
    sign(folder, write_keys(tmp_path, "mine")[0])
    (folder / ".gitattributes").unlink()
    assert verify(folder)["problems"] == []


def test_every_part_of_a_split_model_needs_its_signature(folder: Path, tmp_path: Path):
    key, public = write_keys(tmp_path, "mine")
    parts = [Path(file["path"]) for file in split_gguf(folder / "m.gguf", 2500)["files"]]
    assert len(parts) > 1
    sign(parts[0], key)
    result = verify(parts[0], public)
    assert (result["ok"], result["signature"]) == (False, "none")
    assert len(result["problems"]) == len(parts) - 1
    assert parts[1].name in result["problems"][0]
    assert verify(parts[0])["signature"] == "not checked"
    for part in parts[1:]:
        sign(part, key)
    assert verify(parts[0], public)["signature"] == "verified"
    data = bytearray(parts[-1].read_bytes())
    data[-1] ^= 1
    parts[-1].write_bytes(data)
    assert verify(parts[0], public)["signature"] == "failed"


def test_a_missing_signature_and_wrong_keys(folder: Path, tmp_path: Path):
    key, public = write_keys(tmp_path, "mine")
    result = verify(folder, public)
    assert (result["ok"], result["signature"]) == (False, "none")
    assert "no signature, but a key was given" in result["problems"][0]
    rsa_key, _ = write_keys(tmp_path, "rsa", rsa.generate_private_key(65_537, 2048))
    for wrong in (rsa_key, public, folder / "README.md"):
        with pytest.raises(UsageError, match="not an elliptic-curve private key"):
            sign(folder, wrong)
    with pytest.raises(UsageError, match="not an elliptic-curve public key"):
        verify(folder, folder / "README.md")
    with pytest.raises(SourceError, match="no such file"):
        sign(folder, tmp_path / "nothing.pem")
    assert not (folder / "model.sig").exists()
    sign(folder, key)
    with pytest.raises(UsageError, match="never overwritten"):
        sign(folder, key)


@pytest.mark.slow
def test_the_librarys_own_command_verifies_ours_and_we_verify_its(folder: Path, tmp_path: Path):
    key, public = write_keys(tmp_path, "mine")
    sign(folder, key)
    command = [sys.executable, "-m", "model_signing"]
    signature = folder / "model.sig"
    subprocess.run(
        [*command, "verify", "key", folder, "--signature", signature, "--public_key", public],
        check=True,
        capture_output=True,
    )
    signature.unlink()
    subprocess.run(
        [*command, "sign", "key", folder, "--signature", signature, "--private_key", key],
        check=True,
        capture_output=True,
    )
    assert verify(folder, public)["signature"] == "verified"
