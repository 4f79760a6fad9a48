import json
from pathlib import Path

import pytest

from meditron.ground.errors import DigestError, FetchError, SourceError
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
    assert "Range" not in site.asked[0]


def test_a_broken_connection_is_continued_where_it_broke(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.drops = [300_000, 200_000]
    assert download(f"{site.url}/x.bin", part, sha256=sha256(BODY)) == sha256(BODY)
    first, second, third = site.asked
    assert "Range" not in first
    assert (second["Range"], second["If-Range"]) == ("bytes=300000-", '"one"')
    assert third["Range"] == "bytes=500000-"


def test_a_later_call_continues_what_an_earlier_one_began(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.drops = [1_000, 0, 0, 0]
    with pytest.raises(
        FetchError, match=r"x\.bin: the connection broke after 1,000 of 1,024,000 bytes"
    ) as failed:
        download(f"{site.url}/x.bin", part)
    assert "continues" in str(failed.value.hint)
    assert part.stat().st_size == 1_000
    site.drops.clear()
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY
    assert site.asked[-1]["Range"] == "bytes=1000-"


def test_what_changed_meanwhile_is_begun_again(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.drops = [1_000, 0, 0, 0]
    with pytest.raises(FetchError):
        download(f"{site.url}/x.bin", part)
    site.drops.clear()
    site.files["x.bin"], site.etag = BODY[::-1], '"two"'
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY[::-1]


def test_a_server_without_ranges_or_validators_is_asked_for_all(site: Site, part: Path):
    site.files["x.bin"], site.ranges, site.etag = BODY, False, None
    site.drops = [1_000]
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY


def test_without_validator_a_promised_hash_finds_out_a_wrong_beginning(site: Site, part: Path):
    site.files["x.bin"], site.etag = BODY, None
    site.drops = [1_000, 0, 0, 0]
    with pytest.raises(FetchError):
        download(f"{site.url}/x.bin", part, sha256=sha256(BODY))
    site.drops.clear()
    part.write_bytes(b"?" * 1_000)
    assert download(f"{site.url}/x.bin", part, sha256=sha256(BODY)) == sha256(BODY)
    assert "Range" in site.asked[-2]
    assert "Range" not in site.asked[-1]


def test_a_whole_file_is_not_downloaded_again(site: Site, part: Path):
    site.files["x.bin"] = BODY
    download(f"{site.url}/x.bin", part)
    download(f"{site.url}/x.bin", part)
    assert site.asked[1]["Range"] == f"bytes={len(BODY)}-"
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
    with pytest.raises(DigestError, match=f"SHA-256 is {sha256(BODY)}, promised was {'0' * 64}"):
        download(f"{site.url}/x.bin", part, sha256="0" * 64)
    assert not list(part.parent.iterdir())


def test_a_busy_server_is_asked_again(site: Site, part: Path):
    site.files["x.bin"] = BODY
    site.statuses = [503, 429]
    download(f"{site.url}/x.bin", part)
    assert part.read_bytes() == BODY


def test_a_missing_file_is_a_source_error_at_once(site: Site, part: Path):
    with pytest.raises(SourceError, match=r"/x\.bin: the server has no such file \(404\)"):
        download(f"{site.url}/x.bin?token=secret", part)
    assert len(site.asked) == 1


def test_a_refusal_is_a_fetch_error_that_tells_no_secret(site: Site, part: Path):
    site.statuses = [403]
    with pytest.raises(FetchError, match="the server answered 403") as refused:
        download(f"{site.url}/x.bin?token=secret", part)
    assert "secret" not in str(refused.value)


def test_nobody_there_is_a_fetch_error_of_one_line(site: Site, part: Path):
    with pytest.raises(FetchError, match=r"^http://127\.0\.0\.1:9/x: not reached \(.*refused\)$"):
        download("http://127.0.0.1:9/x", part)


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
