import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from hub_server import TOKEN, Fault, Hub, Repository
from meditron.core.errors import DigestError, FetchError, InputError, MeditronError, SourceError, UsageError
from meditron.store.hub.pull import open_pull
from meditron.store.hub.push import PushResult, plan_push

NAME = "org/model"
CARD = "---\nlicense: llama2\ntags:\n- medical\n---\n# A model\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("The licence.\n")
    (folder / "m.Q8_0.gguf").write_bytes(b"GGUF" + os.urandom(9_000))
    (folder / "sub" / "m.safetensors").write_bytes(os.urandom(4_000))
    return folder


def pushed(folder: Path, *, public: bool = False) -> PushResult:
    return plan_push(folder, NAME).upload(public=public, message="A release")


def states(folder: Path) -> dict[str, str]:
    return {each.file.name: each.state for each in plan_push(folder, NAME).files}


def uploads(hub: Hub) -> int:
    return sum(request.method == "PUT" for request in hub.requests)


@pytest.mark.parametrize("part_bytes", [None, 2_500])
def test_a_folder_becomes_a_private_repository(
    hub: Hub, token: str, folder: Path, tmp_path: Path, part_bytes: int | None
):
    hub.part_bytes = part_bytes
    result = pushed(folder)
    repository = hub.repositories[NAME]
    assert repository.private
    assert (result.commit, result.url, result.uploaded) == (repository.commit, f"{hub.url}/{NAME}", 5)
    expected = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert repository.files == expected
    assert repository.commits == 1
    # The hub's own client gets the same bytes, and so does the command of this project.
    path = hf_hub_download(NAME, "m.Q8_0.gguf", endpoint=hub.url, cache_dir=tmp_path, token=TOKEN)
    assert Path(path).read_bytes() == expected["m.Q8_0.gguf"]
    with open_pull(f"hf:{NAME}", out=tmp_path / "back") as (selection, out, work):
        selection.pull_into(out, work)
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == expected


def test_sums_are_those_of_sha256sum(hub: Hub, token: str, folder: Path):
    pushed(folder)
    assert "README.md" not in (folder / "SHA256SUMS").read_text()
    subprocess.run(["sha256sum", "--strict", "--check", "SHA256SUMS"], cwd=folder, check=True)


def test_only_changed_files_are_uploaded(hub: Hub, token: str, folder: Path):
    pushed(folder)
    assert set(states(folder).values()) == {"unchanged"}
    first = uploads(hub)
    assert pushed(folder).uploaded == 0
    assert (uploads(hub), hub.repositories[NAME].commits) == (first, 1)
    (folder / "new.gguf").write_bytes(b"GGUF")
    (folder / "README.md").write_text(CARD + "Edited.\n")
    assert states(folder) == {
        "LICENSE": "unchanged",
        "README.md": "changed",
        "SHA256SUMS": "changed",
        "m.Q8_0.gguf": "unchanged",
        "new.gguf": "new",
        "sub/m.safetensors": "unchanged",
    }
    assert pushed(folder).uploaded == 3
    assert uploads(hub) == first + 1
    assert set(states(folder).values()) == {"unchanged"}


def test_a_plan_changes_nothing(hub: Hub, folder: Path):
    assert set(states(folder).values()) == {"new"}
    assert hub.repositories == {}
    assert not (folder / "SHA256SUMS").exists()
    assert {request.method for request in hub.requests if "validate" not in request.path} == {"GET"}


def test_left_out(hub: Hub, token: str, folder: Path):
    for name, content in {
        ".git/config": b"[core]", ".cache/huggingface/x": b"x", ".env": b"HF_TOKEN=1", "token": b"t",
        "__pycache__/a.pyc": b"x", "pytorch_model.bin": b"PK\x03\x04", "old.bin": b"\x80\x02}", "x.pt": b"x",
        "in_progress.json": b"{}", "m.gguf.part": b"x", "sub/.DS_Store": b"x", "plain.bin": b"\x00\x01",
        ".gitattributes": b"*.gguf filter=lfs diff=lfs merge=lfs -text\n",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link.gguf").symlink_to("/etc/passwd")
    (folder / "linked").symlink_to(folder / "sub")
    planned = plan_push(folder, NAME)
    assert set(planned.excluded) == {
        ".git", ".cache", ".env", "token", "__pycache__", "pytorch_model.bin", "old.bin", "x.pt",
        "in_progress.json", "m.gguf.part", "sub/.DS_Store", "link.gguf", "linked",
    }  # fmt: skip
    planned.upload(public=False, message="A release")
    assert set(hub.repositories[NAME].files) == {
        ".gitattributes", "LICENSE", "README.md", "SHA256SUMS", "m.Q8_0.gguf", "plain.bin",
        "sub/m.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("secret", [TOKEN, "hf_" + "a1" * 17, "-----BEGIN OPENSSH PRIVATE KEY-----"])
def test_a_secret_in_a_file_is_refused(hub: Hub, token: str, folder: Path, secret: str):
    (folder / "train.py").write_text(f"import os\nkey = '{secret}'\n")
    with pytest.raises(InputError, match=r"train\.py \(line 2\): contains an access token") as raised:
        pushed(folder)
    assert secret not in f"{raised.value}{raised.value.hint}"
    assert hub.repositories == {}


def test_a_file_above_the_hubs_limit(hub: Hub, folder: Path):
    with (folder / "large.gguf").open("wb") as file:
        file.truncate(50 * 10**9 + 1)  # sparse
    with pytest.raises(UsageError, match=r"large\.gguf: 50\.0 GB; the hub accepts files up to") as raised:
        plan_push(folder, NAME)
    assert "meditron split" in str(raised.value.hint)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        (None, "there is no model card"),
        ("---\nlicense: [\n---\n", "front matter"),
        ("# No metadata\n", "states no licence"),
        ("---\ntags: [a]\n---\n", "states no licence"),
        ("---\nlicense: other\n---\n", 'the hub rejects the metadata: "license_name" is required'),
    ],
)
def test_a_card_that_is_not_valid(hub: Hub, token: str, folder: Path, card: str | None, problem: str):
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    with pytest.raises(InputError, match=problem):
        pushed(folder)
    assert uploads(hub) == 0
    assert hub.repositories == {}


def test_sums_that_differ_stop_the_push(hub: Hub, token: str, folder: Path):
    pushed(folder)
    path = folder / "m.Q8_0.gguf"
    path.write_bytes(b"GGUF" + os.urandom(9_000))
    with pytest.raises(DigestError, match=r"m\.Q8_0\.gguf \(SHA256SUMS, line 2\)") as raised:
        plan_push(folder, NAME)
    assert "remove" in str(raised.value.hint)
    (folder / "SHA256SUMS").write_text("no sum\n")
    with pytest.raises(InputError, match="line 1"):
        plan_push(folder, NAME)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  gone.gguf\n")
    with pytest.raises(InputError, match=r"lists gone\.gguf"):
        plan_push(folder, NAME)
    (folder / "SHA256SUMS").unlink()
    assert pushed(folder).uploaded == 2


def test_an_interrupted_push_continues(hub: Hub, token: str, folder: Path):
    hub.faults = [Fault("/commit/", status=500, times=99)]
    with pytest.raises(FetchError, match="answered 500"):
        pushed(folder)
    assert uploads(hub) == 2
    hub.faults = []
    assert pushed(folder).uploaded == 5
    assert uploads(hub) == 2  # the hub has the large files already


def test_a_busy_hub_is_asked_again(hub: Hub, token: str, folder: Path):
    hub.faults = [
        Fault("/api/repos/create", status=503),
        Fault("^/upload/", status=500),
        Fault("/commit/", status=429, headers={"Retry-After": "0"}),
    ]
    assert pushed(folder).uploaded == 5
    assert hub.repositories[NAME].files["m.Q8_0.gguf"] == (folder / "m.Q8_0.gguf").read_bytes()


@pytest.mark.parametrize(
    ("fault", "message", "hint"),
    [
        # https://github.com/huggingface/huggingface_hub/issues/3325: was repeated for ever
        (
            Fault("/commit/", status=403, body=b'{"error": "storage patterns"}'),
            "403.*storage patterns",
            "storage",
        ),
        (Fault("/commit/", status=412, body=b'{"error": "A commit has happened since"}'), "412", None),
        (Fault("/api/repos/create", status=401, times=9), "401", "HF_TOKEN"),
        (Fault("/commit/", status=429, times=99), "429", "limits requests"),
    ],
)
def test_refusals_are_one_line_with_a_hint(
    hub: Hub, token: str, folder: Path, fault: Fault, message: str, hint: str | None
):
    hub.faults = [fault]
    with pytest.raises(MeditronError, match=message) as raised:
        pushed(folder)
    assert hint is None or hint in str(raised.value.hint)
    assert "\n" not in str(raised.value)
    assert TOKEN not in f"{raised.value}{raised.value.hint}"
    assert len(hub.requests) < 60


def test_a_public_repository_needs_a_flag(hub: Hub, token: str, folder: Path):
    hub.repositories[NAME] = Repository()
    with pytest.raises(UsageError, match="the repository is public") as raised:
        pushed(folder)
    assert "--public" in str(raised.value.hint)
    assert pushed(folder, public=True).uploaded == 5
    del hub.repositories[NAME]
    pushed(folder, public=True)
    assert not hub.repositories[NAME].private


def test_a_file_that_the_hub_ignored_is_noticed(
    hub: Hub, token: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    # The repository's own .gitignore may exclude files, which the library skips without a word.
    monkeypatch.setattr(Repository, "is_large", lambda self, name: False)
    original = dict.__setitem__

    class Forgetful(dict):  # type: ignore[type-arg]
        def __setitem__(self, name: str, content: bytes) -> None:
            if name != "LICENSE":
                original(self, name, content)

    hub.repositories[NAME] = Repository(Forgetful(), private=True)
    with pytest.raises(FetchError, match="1 file are not in the commit: LICENSE") as raised:
        pushed(folder)
    assert ".gitignore" in str(raised.value.hint)


@pytest.mark.parametrize("name", ["model", "a/b/c", "org/..", "org/na me", "-/x"])
def test_a_name_that_the_hub_cannot_have(hub: Hub, token: str, folder: Path, name: str):
    with pytest.raises(UsageError):
        plan_push(folder, name)


def test_a_push_without_a_token(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="needs an access token") as raised:
        pushed(folder)
    assert "HF_TOKEN" in str(raised.value.hint)


def test_no_folder(hub: Hub, tmp_path: Path):
    with pytest.raises(SourceError):
        plan_push(tmp_path / "none", NAME)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no file to upload"):
        plan_push(tmp_path / "empty", NAME)


def test_the_commands(hub: Hub, token: str, folder: Path, tmp_path: Path):
    def meditron(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "meditron", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = meditron("push", folder, NAME)
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/{NAME}\n"), done.stderr
    assert "m.Q8_0.gguf" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    done = meditron("pull", f"hf:{NAME}:m.Q8_0.gguf")
    assert (done.returncode, done.stdout) == (0, "model/m.Q8_0.gguf\n"), done.stderr
    digest = hashlib.sha256((tmp_path / "model" / "m.Q8_0.gguf").read_bytes()).hexdigest()
    assert digest == hashlib.sha256((folder / "m.Q8_0.gguf").read_bytes()).hexdigest()
