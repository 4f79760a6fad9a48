import gzip
import json
import socket
from http.client import HTTPResponse
from pathlib import Path

import pytest

from meditron.core.errors import DigestError, FetchError, SourceError
from meditron.store import download as downloads
from meditron.store.download import download
from store.web import Site
from store.wheels import sha256

BODY = bytes(range(256)) * 4_000


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "down/x.bin"


def test_a_file_arrives_and_is_shown(site: Site, part: Path, capfd: pytest.CaptureFixture[str]):
    site.files["x.bin"] = BODY
    assert download(f"{site.url}/x.bin", part) == sha256(BODY)
    assert part.read_bytes() == BODY
    assert "fetch x.bin: 1.02 MB" in capfd.readouterr().err
    assert "Range" not in site.requests[0]


def test_a_broken_connection_is_continued_where_it_broke(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.drops = [300_000, 200_000]
    assert download(f"{site.url}/x.bin", part, sha256=sha256(BODY)) == sha256(BODY)
    first, second, third = site.requests
    assert "Range" not in first
    assert (second["Range"], second["If-Range"]) == ("bytes=300000-", '"one"')
    assert third["Range"] == "bytes=500000-"


def test_a_later_call_continues_what_an_earlier_one_began(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.drops = [1_000, 0, 0, 0]
    with pytest.raises(FetchError, match=r"x\.bin: connection lost after 1,000 of 1,024,000 bytes") as raised:
        download(f"{site.url}/x.bin", part)
    assert "resume it" in str(raised.value.hint)
    assert part.stat().st_size == 1_000
    site.drops.clear()
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY
    assert site.requests[-1]["Range"] == "bytes=1000-"


def test_a_file_that_changed_on_the_server_is_downloaded_from_the_start(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.drops = [1_000, 0, 0, 0]
    with pytest.raises(FetchError):
        download(f"{site.url}/x.bin", part)
    site.drops.clear()
    site.files["x.bin"], site.etag = BODY[::-1], '"two"'
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY[::-1]


def test_without_ranges_or_validators_the_whole_file_is_requested(site: Site, part: Path):
    site.files["x.bin"], site.ranges, site.etag = BODY, False, None
    site.drops = [1_000]
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY


def test_without_validator_the_expected_hash_detects_a_wrong_partial_file(site: Site, part: Path):
    site.files["x.bin"], site.etag = BODY, None
    site.drops = [1_000, 0, 0, 0]
    with pytest.raises(FetchError):
        download(f"{site.url}/x.bin", part, sha256=sha256(BODY))
    site.drops.clear()
    part.write_bytes(b"?" * 1_000)
    assert download(f"{site.url}/x.bin", part, sha256=sha256(BODY)) == sha256(BODY)
    assert "Range" in site.requests[-2]
    assert "Range" not in site.requests[-1]


def test_a_complete_file_is_not_downloaded_again(site: Site, part: Path):
    site.files["x.bin"] = BODY
    download(f"{site.url}/x.bin", part)
    download(f"{site.url}/x.bin", part)
    assert site.requests[1]["Range"] == f"bytes={len(BODY)}-"
    assert part.read_bytes() == BODY


def test_another_address_or_a_damaged_note_is_no_beginning(site: Site, part: Path):
    site.files |= {"x.bin": BODY, "y.bin": BODY[::-1]}
    download(f"{site.url}/x.bin", part)
    download(f"{site.url}/y.bin", part)
    assert part.read_bytes() == BODY[::-1]
    part.with_name("x.bin.json").write_text(json.dumps(["?"]))
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY


def test_wrong_bytes_are_refused_and_not_kept(site: Site, part: Path):
    site.files["x.bin"] = BODY
    with pytest.raises(DigestError, match=f"SHA-256 is {sha256(BODY)}, expected {'0' * 64}"):
        download(f"{site.url}/x.bin", part, sha256="0" * 64)
    assert not list(part.parent.iterdir())


def test_a_busy_server_is_retried(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.statuses = [503, 429]
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY


def test_a_missing_file_is_a_source_error_at_once(site: Site, part: Path):
    with pytest.raises(SourceError, match=r"/x\.bin: the server has no such file \(404\)"):
        download(f"{site.url}/x.bin?token=secret", part)
    assert len(site.requests) == 1


def test_a_refusal_is_a_fetch_error_that_tells_no_secret(site: Site, part: Path):
    site.statuses = [403]
    with pytest.raises(FetchError, match="the server answered 403") as raised:
        download(f"{site.url}/x.bin?token=secret", part)
    assert "secret" not in str(raised.value)


def test_an_unreachable_server_is_a_fetch_error_of_one_line(site: Site, part: Path):
    with pytest.raises(
        FetchError, match=r"^http://127\.0\.0\.1:9/x: cannot reach the server \(.*refused\)$"
    ) as raised:
        download("http://127.0.0.1:9/x", part)
    assert raised.value.hint == "check the address and the network connection"


def test_a_certificate_is_trusted_when_the_environment_says_so(
    secure_site: tuple[Site, Path], part: Path, monkeypatch: pytest.MonkeyPatch
):
    site, certificate = secure_site
    site.files["x.bin"] = BODY
    with pytest.raises(FetchError, match=r"certificate is not trusted \(self.signed certificate\)"):
        download(f"{site.url}/x.bin", part)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert download(f"{site.url}/x.bin", part) == sha256(BODY)


def test_a_redirect_leads_to_http_only(site: Site, part: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    site.redirect = (tmp_path / "secret").as_uri()
    with pytest.raises(FetchError, match="302"):
        download(f"{site.url}/x.bin", part)
    assert not part.exists()


def test_a_redirect_from_https_to_http_is_not_followed(
    secure_site: tuple[Site, Path], part: Path, monkeypatch: pytest.MonkeyPatch
):
    site, certificate = secure_site
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    site.redirect = "http://127.0.0.1:9/y.bin?sig=secret"
    with pytest.raises(
        FetchError, match=r"x\.bin: redirects from https to http://127\.0\.0\.1:9/y\.bin, which"
    ):
        download(f"{site.url}/x.bin", part)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/x.bin?again=secret", "endless redirects"),
        ("http://h:99999/?sig=secret", "redirects to .*the port must be"),
        ("http://[h/?sig=secret", "redirects to an address that is not valid"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_one_line(site: Site, part: Path, target: str, message: str):
    site.redirect = target
    with pytest.raises(FetchError, match=message) as raised:
        download(f"{site.url}/x.bin", part)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_range_of_another_version_restarts_the_download(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.drops = [1_000, 0, 0, 0]
    with pytest.raises(FetchError):
        download(f"{site.url}/x.bin", part)
    site.drops.clear()
    # Another file, by a server that minds no If-Range and tells no ETag any more.
    site.files["x.bin"], site.etag, site.if_range = BODY[::-1], None, False
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY[::-1]
    assert [request.get("Range") for request in site.requests[-2:]] == ["bytes=1000-", None]


def test_a_range_that_was_not_requested_is_not_taken_for_the_file(site: Site, part: Path):
    site.files["x.bin"], site.status = BODY[:1_000], 206
    site.headers = {"Content-Range": f"bytes 0-999/{len(BODY)}"}
    with pytest.raises(
        FetchError, match=r"sent another range or version than requested|after 1,000 of 1,024,000"
    ):
        download(f"{site.url}/x.bin", part)
    assert len(site.requests) < 10


@pytest.mark.parametrize("status", [202, 203, 204])
def test_a_success_without_a_file_is_refused(site: Site, part: Path, status: int):
    site.files["x.bin"], site.status = b"" if status == 204 else b"soon", status
    with pytest.raises(FetchError, match=f"the server answered {status} .*, not a file"):
        download(f"{site.url}/x.bin", part)
    assert not part.exists()


def test_a_body_shorter_than_its_declared_length_is_detected(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.headers = {"Content-Length": str(len(BODY) + 1)}
    site.drops = [len(BODY)]  # then it is asked for the rest, and says that there is none
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY
    assert site.requests[1]["Range"] == f"bytes={len(BODY)}-"


def test_a_file_of_more_than_the_most_is_refused(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch):
    site.files["x.bin"] = site.files["x.bin?again"] = BODY
    monkeypatch.setattr("meditron.store.download.MAX_BYTES", len(BODY))
    download(f"{site.url}/x.bin", part)
    monkeypatch.setattr("meditron.store.download.MAX_BYTES", len(BODY) - 1)
    site.etag = None
    with pytest.raises(FetchError, match="the limit is 1,023,999"):
        download(f"{site.url}/x.bin?again", part)
    site.headers = {"Content-Length": "unknown"}  # then it ends when the connection does
    site.drops = [len(BODY)]
    with pytest.raises(FetchError, match="sent more than 1,023,999 bytes"):
        download(f"{site.url}/x.bin", part)


def test_an_encoding_that_was_not_requested_is_refused_except_for_a_packed_file(site: Site, part: Path):
    packed = gzip.compress(BODY)
    site.files = {"x.jsonl": packed, "x.jsonl.gz": packed}
    site.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(FetchError, match=r"sends the file compressed \(gzip\)"):
        download(f"{site.url}/x.jsonl", part)
    assert download(f"{site.url}/x.jsonl.gz", part) == sha256(packed)
    assert download(f"{site.url}/x.jsonl", part, sha256=sha256(packed)) == sha256(packed)


def test_a_silent_server_is_given_up(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("meditron.store.download._TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(FetchError, match="timed out"):
            download(address, part)


def test_what_another_process_wrote_into_it_is_not_taken_for_the_file(
    site: Site, part: Path, monkeypatch: pytest.MonkeyPatch
):
    # A lock that does not lock (Lustre, some NFS): https://github.com/huggingface/huggingface_hub/pull/4306
    site.files["x.bin"] = BODY
    read, others = downloads._read_chunk, [b"theirs"]

    def intruded(response: HTTPResponse, size: int) -> bytes:
        if others:
            with part.open("ab") as file:
                file.write(others.pop())
        return read(response, size)

    monkeypatch.setattr(downloads, "_read_chunk", intruded)
    assert download(f"{site.url}/x.bin", part) == sha256(BODY)
    assert part.read_bytes() == BODY


def test_only_get_is_requested(site: Site, part: Path):
    # The server knows no HEAD.
    site.files["x.bin"] = BODY
    download(f"{site.url}/x.bin", part)
    assert len(site.requests) == 1
