import hashlib
import random
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from hub_server import TOKEN, Fault, Hub, Repository
from meditron.core.errors import DigestError, FetchError, InputError, MeditronError, SourceError, StorageError
from meditron.store.gguf import write_gguf
from meditron.store.hub.pull import WORK, PulledFile, open_pull
from meditron.store.hub.selection import model_of

NAME = "hf:org/m"
CONFIG = b"""{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
"max_position_embeddings": 512}"""
# Keys and values, the compute buffer of a batch of 512 tokens, the program.
CONTEXT_BYTES = 2 * (2 * 2 * (8 + 8)) * 512 + 512 * (4 * 5 * 32 + 2 * 512) + 30_000_000


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The shape of CONFIG, with tensors of no meaning behind it."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 32,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.tokens": [f"token {n}" for n in range(20_000)],
    }
    write_gguf(path, metadata, {})
    return path.read_bytes() + content(300_000)


@pytest.fixture
def repository(hub: Hub, gguf: bytes) -> Repository:
    files = {
        "README.md": b"# A model\n",
        "empty.txt": b"",
        "config.json": CONFIG,
        "m.Q4_K_M.gguf": gguf,
        "m.Q8_0.gguf": gguf + content(50_000, 1),
        "sub/model.safetensors": content(1_000, 2),
        "model-00001-of-00002.safetensors": content(1_000, 3),
        "model-00002-of-00002.safetensors": content(2_000, 4),
    }
    hub.repositories["org/m"] = Repository(files)
    return hub.repositories["org/m"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pulled"


def pulled(out: Path, *globs: str, source: str = NAME, revision: str | None = None) -> list[PulledFile]:
    with open_pull(source, revision=revision, globs=globs, out=out) as (selection, folder, work):
        return selection.pull_into(folder, work)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_server_is_one_that_the_hubs_own_client_downloads_from(
    hub: Hub, repository: Repository, tmp_path: Path
):
    for name in ("config.json", "m.Q4_K_M.gguf"):
        path = hf_hub_download("org/m", name, endpoint=hub.url, cache_dir=tmp_path)
        assert Path(path).read_bytes() == repository.files[name]


def test_a_whole_repository(hub: Hub, repository: Repository, out: Path):
    files = pulled(out)
    assert tree(out) == repository.files
    assert {file.state for file in files} == {"downloaded"}
    before = len(hub.requests)
    assert {file.state for file in pulled(out)} == {"present"}
    assert all("/resolve/" not in request.path for request in hub.requests[before:])


def test_memory_is_the_models_files_and_its_context(hub: Hub, repository: Repository, gguf: bytes, out: Path):
    with open_pull(NAME, out=out) as (selection, _, work):
        memory = selection.memory(work)
    assert memory == {
        "README.md": None,
        "empty.txt": None,
        "config.json": None,
        "m.Q4_K_M.gguf": len(gguf) + CONTEXT_BYTES,
        "m.Q8_0.gguf": len(gguf) + 50_000 + CONTEXT_BYTES,
        "sub/model.safetensors": None,  # has no config.json beside it
        "model-00001-of-00002.safetensors": 3_000 + CONTEXT_BYTES,
        "model-00002-of-00002.safetensors": 3_000 + CONTEXT_BYTES,
    }
    # Of a file of half a megabyte only its beginning was requested.
    assert set(hub.ranges("m.Q4_K_M.gguf")) == {"bytes=0-65535"}


def test_what_the_listing_read_is_not_downloaded_again(hub: Hub, repository: Repository, out: Path):
    with open_pull(NAME, globs=["*Q4*"], out=out) as (selection, folder, work):
        selection.memory(work)
        selection.pull_into(folder, work)
    assert tree(out) == {"m.Q4_K_M.gguf": repository.files["m.Q4_K_M.gguf"]}
    assert hub.ranges("m.Q4_K_M.gguf") == ["bytes=0-65535", "bytes=65536-"]


@pytest.mark.parametrize(
    ("source", "globs", "names"),
    [
        (f"{NAME}:m.Q8_0.gguf", (), ["m.Q8_0.gguf"]),
        (f"{NAME}:sub/model.safetensors", (), ["sub/model.safetensors"]),
        (NAME, ("*Q4_K*", "*.md"), ["README.md", "m.Q4_K_M.gguf"]),
        (NAME, ("model*.safetensors",), [
            "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "sub/model.safetensors"
        ]),
        (NAME, ("sub/*",), ["sub/model.safetensors"]),
    ],
)  # fmt: skip
def test_a_file_or_globs(
    repository: Repository, out: Path, source: str, globs: tuple[str, ...], names: list[str]
):
    pulled(out, *globs, source=source)
    assert tree(out) == {name: repository.files[name] for name in names}


@pytest.mark.parametrize(
    ("source", "globs", "message", "hint"),
    [
        (f"{NAME}:m.Q4_K_S.gguf", (), "no file called m.Q4_K_S.gguf", "m.Q4_K_M.gguf"),
        (NAME, ("*q8*",), "no file matches", "m.Q8_0.gguf"),
        (NAME, ("*nothing*",), r"no file matches \*nothing\*", "its files: README.md"),
        ("hf:org/none", (), "no such model on the hub", "HF_TOKEN"),
        ("README.md", (), "not a model on the hub", "hf:org/name"),
        ("hf:datasets/org/m", (), "not a model on the hub", "hf:org/name"),
    ],
)
def test_nothing_to_download_is_an_error(
    repository: Repository,
    out: Path,
    tmp_path: Path,
    source: str,
    globs: tuple[str, ...],
    message: str,
    hint: str,
):
    with pytest.raises(SourceError, match=message) as raised:
        pulled(out / "out", *globs, source=source)
    assert hint in str(raised.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_revision(repository: Repository, out: Path):
    pulled(out, "*.md", revision=repository.commit)
    assert (out / "README.md").is_file()
    with pytest.raises(SourceError, match="no such revision"):
        pulled(out, revision="v9")


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_connection_is_resumed_at_the_byte(hub: Hub, repository: Repository, out: Path, seed: int):
    name, rng = "m.Q8_0.gguf", random.Random(seed)
    cuts = [rng.randrange(1, 100_000), rng.randrange(1, 100_000)]
    hub.faults = [Fault("^/storage/", cut=cut) for cut in cuts]
    pulled(out, name)
    assert tree(out) == {name: repository.files[name]}
    assert hub.ranges(name) == [None, f"bytes={cuts[0]}-", f"bytes={sum(cuts)}-"]


def test_a_later_call_resumes_even_if_the_branch_has_moved(hub: Hub, repository: Repository, out: Path):
    name = "m.Q8_0.gguf"
    hub.faults = [Fault("^/storage/", cut=70_000), Fault("^/storage/", status=503, times=9)]
    with pytest.raises(FetchError, match="answered 503") as raised:
        pulled(out, name)
    assert "resume" in str(raised.value.hint)
    assert set(tree(out)) & set(repository.files) == set()
    hub.faults, hub.requests = [], []
    repository.files["README.md"] = b"Edited meanwhile."
    repository.commits += 1
    pulled(out, name)
    assert tree(out) == {name: repository.files[name]}
    assert hub.ranges(name) == ["bytes=70000-"]


@pytest.mark.parametrize("name", ["m.Q4_K_M.gguf", "README.md"])
def test_an_altered_byte_is_refused(hub: Hub, repository: Repository, out: Path, name: str):
    path = "^/storage/" if name.endswith("gguf") else "resolve/.*README"
    hub.faults = [Fault(path, flip=5, times=9)]
    with pytest.raises(DigestError, match="expected") as raised:
        pulled(out, "m.Q4_K_M.gguf", "README.md")
    assert "was removed" in str(raised.value.hint)
    kept = {"m.Q4_K_M.gguf", "README.md"} - {name}
    assert {key: value for key, value in tree(out).items() if not key.startswith(WORK)} == {
        other: repository.files[other] for other in kept
    }
    hub.faults = []
    pulled(out, "m.Q4_K_M.gguf", "README.md")
    assert (out / name).read_bytes() == repository.files[name]


def test_a_file_that_was_altered_here_is_downloaded_again(repository: Repository, out: Path):
    pulled(out, "*.gguf")
    path = out / "m.Q4_K_M.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    states = {file.name: file.state for file in pulled(out, "*.gguf")}
    assert states == {"m.Q4_K_M.gguf": "downloaded", "m.Q8_0.gguf": "present"}
    assert path.read_bytes() == repository.files["m.Q4_K_M.gguf"]


def test_plain_pieces_are_joined_and_shards_are_not(hub: Hub, gguf: bytes, out: Path):
    pieces = {f"m.Q8_0.gguf-split-{letter}": gguf[start : start + 200_000] for letter, start in (("a", 0), ("b", 200_000), ("c", 400_000))}  # fmt: skip  # noqa: E501
    shards = {"s-00001-of-00002.gguf": gguf[:-1], "s-00002-of-00002.gguf": b"GGUF"}
    hub.repositories["org/m"] = Repository(pieces | shards)
    files = pulled(out, "*")
    assert tree(out) == {"m.Q8_0.gguf": gguf[:600_000], **shards}
    assert {file.name: file.state for file in files}["m.Q8_0.gguf"] == "joined"
    hub.requests = []
    assert {file.state for file in pulled(out, source=f"{NAME}:m.Q8_0.gguf")} == {"present"}
    assert [request.path for request in hub.requests] == ["/api/models/org/m"]
    with open_pull(NAME, globs=["*split-b"], out=out / "half") as (selection, folder, work):
        assert selection.memory(work) == {"m.Q8_0.gguf-split-b": len(gguf[:600_000]) + CONTEXT_BYTES}
        selection.pull_into(folder, work)
    assert set(tree(out / "half")) == {"m.Q8_0.gguf-split-b"}  # not a whole file


def test_the_name_of_a_shard_selects_all_shards_of_its_model(hub: Hub, gguf: bytes, out: Path):
    first = "q/s-00001-of-00002.gguf"
    shards = {first: gguf, "q/s-00002-of-00002.gguf": b"GGUF"}
    others = {"s-00001-of-00002.gguf": b"", "q/s-00001-of-00003.gguf": b"", "q/s.gguf": b""}
    hub.repositories["org/m"] = Repository(shards | others)
    pulled(out, source=f"{NAME}:{first}")
    assert tree(out) == shards
    pulled(out / "again", source=f"{NAME}:q/s-00002-of-00002.gguf")
    assert tree(out / "again") == shards
    digest = hashlib.sha256(gguf).hexdigest()
    assert len(pulled(out, source=f"{NAME}:{first}@sha256:{digest}")) == 2
    with pytest.raises(DigestError, match="expected 0000"):
        pulled(out, source=f"{NAME}:{first}@sha256:{'0' * 64}")


def test_a_digest_of_a_file_in_pieces_is_refused_and_not_ignored(hub: Hub, gguf: bytes, out: Path):
    hub.repositories["org/m"] = Repository({"m.gguf-split-a": gguf, "m.gguf-split-b": b"GGUF"})
    with pytest.raises(SourceError, match=r"m\.gguf is joined from 2 pieces"):
        pulled(out, source=f"{NAME}:m.gguf@sha256:{'0' * 64}")


def test_a_busy_hub_is_asked_again(hub: Hub, repository: Repository, out: Path):
    hub.faults = [
        Fault("^/api/models", status=429, headers={"Retry-After": "0"}),
        Fault("^/api/models", status=503),
        Fault("/resolve/", status=429, headers={"Retry-After": "0"}),
    ]
    pulled(out, "*.md")
    assert (out / "README.md").read_bytes() == repository.files["README.md"]


@pytest.mark.parametrize(
    ("fault", "error", "message", "hint"),
    [
        (Fault("^/api/", status=429, times=9), FetchError, "the hub answered 429", "limits requests"),
        (Fault("^/api/", status=500, times=9), FetchError, "the hub answered 500", "try again later"),
        (Fault("^/api/", status=403), FetchError, "the hub answered 403", "permission"),
        (Fault("^/api/", status=404), SourceError, "no such model or revision", "check the name"),
        (Fault("/resolve/", status=403), FetchError, "answered 403", "HF_TOKEN"),
        (Fault("/resolve/", status=404), SourceError, "has no such file", "run the same command again"),
    ],
)
def test_refusals_are_one_line_with_a_hint(
    hub: Hub, repository: Repository, out: Path, token: str, fault: Fault, error: type[MeditronError],
    message: str, hint: str,
):  # fmt: skip
    fault.body = b'{"error": "not for %s"}' % token.encode()
    hub.faults = [fault]
    with pytest.raises(error, match=message) as raised:
        pulled(out, "*.md")
    assert hint in str(raised.value.hint)
    assert token not in f"{raised.value} {raised.value.hint}"
    assert "\n" not in str(raised.value)


def test_a_gated_model_names_the_page_with_its_terms(hub: Hub, repository: Repository, out: Path):
    repository.gated = "manual"
    with pytest.raises(FetchError, match="answered 401") as raised:
        pulled(out, "*.md")
    assert f"accept its terms at {hub.url}/org/m" in str(raised.value.hint)


def test_the_token_goes_to_the_hub_and_to_no_other_host(
    hub: Hub, repository: Repository, out: Path, token: str, capfd: pytest.CaptureFixture[str]
):
    repository.private = True
    pulled(out, "*.gguf", "*.md")
    sent = {r.path.split("/")[1]: r.headers.get("Authorization") for r in hub.requests}
    assert sent == {"api": f"Bearer {TOKEN}", "org": f"Bearer {TOKEN}", "storage": None}
    assert not any(token.encode() in data for data in tree(out).values())
    assert token not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\share\\x",
        "a//b", "./a", "a\x00b", "a\nb", "nul.txt", "x. ", "n" * 300, f"{WORK}/parts/x",
    ],
)  # fmt: skip
def test_names_from_the_hub_stay_in_the_folder(
    hub: Hub, repository: Repository, out: Path, tmp_path: Path, name: str
):
    repository.files["evil"] = b"x"
    repository.listed["evil"] = name
    with pytest.raises(InputError):
        pulled(tmp_path / "out" / "deep")
    assert not list(tmp_path.rglob("*evil*"))
    assert not (tmp_path / "out").exists()


def test_links_in_the_folder_are_not_followed(repository: Repository, tmp_path: Path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "sub").symlink_to(elsewhere)
    with pytest.raises(StorageError, match="not a folder"):
        pulled(out, "sub/*")
    (elsewhere / "README.md").write_text("mine")
    (out / "README.md").symlink_to(elsewhere / "README.md")
    pulled(out, "*.md")
    assert (elsewhere / "README.md").read_text() == "mine"
    assert (out / "README.md").read_bytes() == repository.files["README.md"]
    assert [path.name for path in elsewhere.iterdir()] == ["README.md"]


def test_a_full_disk_is_noticed_before_the_download(
    hub: Hub, repository: Repository, out: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    usage = shutil.disk_usage(out.parent)._replace(free=400_000)
    monkeypatch.setattr("meditron.store.hub.pull.shutil.disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="only 400 kB are free") as raised:
        pulled(out, "*.gguf")
    assert "--include" in str(raised.value.hint)
    assert hub.ranges("m.Q8_0.gguf") == []


def test_an_expected_digest_is_compared(repository: Repository, out: Path):
    digest = hashlib.sha256(repository.files["m.Q8_0.gguf"]).hexdigest()
    pulled(out, source=f"{NAME}:m.Q8_0.gguf@sha256:{digest}")
    with pytest.raises(DigestError, match="expected 0000"):
        pulled(out, source=f"{NAME}:m.Q8_0.gguf@sha256:{'0' * 64}")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("a/m-00002-of-00003.gguf", "a/m.gguf"),
        ("model-00001-of-00002.safetensors", "model.safetensors"),
        ("m.Q6_K.gguf-split-b", "m.Q6_K.gguf"),
        ("m.Q6_K.gguf", "m.Q6_K.gguf"),
    ],
)
def test_files_of_one_model(name: str, model: str):
    assert model_of(name) == model
