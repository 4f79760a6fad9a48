import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import SourceError
from meditron.store.address import normalize_address, stable_identity
from meditron.store.fetch import parse_source, public_source, source_identity

HEX = "a" * 64


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("http://h/é/a b.gz", "http://h/%C3%A9/a%20b.gz"),
        ("http://h/%C3%A9?é=a b", "http://h/%C3%A9?%C3%A9=a%20b"),
        ("http://h/100%/%zz", "http://h/100%25/%25zz"),
        ("http://bücher.example:80/x", "http://xn--bcher-kva.example:80/x"),
        ("http://H.Example:/x", "http://h.example/x"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://h/a/../b", "http://h/a/../b"),
        ("http://h", "http://h"),
    ],
)
def test_an_address_is_quoted_as_it_is_sent(address: str, sent: str):
    assert normalize_address(address) == sent == normalize_address(sent)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http:///x", "has no host"),
        ("http://:80/x", "has no host"),
        ("http:h/x", "has no host"),
        ("http://h:99999/x", "port"),
        ("http://h:0/x", "port"),
        ("http://h:http/x", "port"),
        ("http://h:-1/x", "port"),
        ("http://[::1/x", "host is not valid"),
        ("http://h h/x", "host is not valid"),
        ("http://a..b/x", "host is not valid"),
        (f"http://{'a' * 64}.b/x", "host is not valid"),
        ("http://h\\x/y", "host is not valid"),
        ("http://h/\n", "control character"),
        ("http://h/\0", "control character"),
        (f"http://h/{'a' * 8_192}", "the limit is 8,192"),
    ],
)
def test_an_invalid_address_is_one_line_before_any_request(address: str, message: str):
    with pytest.raises(SourceError, match=message) as raised:
        parse_source(f"{address}?token=SECRET")
    assert "\n" not in str(raised.value)
    assert "SECRET" not in f"{raised.value} {raised.value.hint}"


@given(st.text())
def test_any_address_is_one_that_can_be_sent_or_refused(text: str):
    try:
        sent = normalize_address(f"https://{text}")
    except SourceError:
        return
    assert sent.isascii()
    assert sent.isprintable()
    assert " " not in sent


def test_upper_case_is_the_same_scheme():
    assert parse_source("HTTP://h/x").name == "http://h/x"
    assert parse_source("PyPI:a==1").scheme == "pypi"


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Date=1&X-Amz-Signature=SECRET",
        "X-Goog-Signature=SECRET",
        "sv=1&se=2&sr=b&sp=r&sig=SECRET",
        "Expires=1&Signature=SECRET&Key-Pair-Id=K",
        "access_token=SECRET",
        "token=SECRET",
    ],
)
def test_a_renewed_signature_is_the_same_file(query: str):
    assert (
        source_identity(f"https://h/x.gz?{query}")
        == source_identity("https://me:SECRET@h/x.gz")
        == "https://h/x.gz"
    )


def test_other_parameters_change_the_identity_but_are_not_in_it():
    files = [source_identity(f"https://h/get?{query}") for query in ("file=a", "file=b", "key=a", "se=1", "")]
    assert len(set(files)) == len(files)
    assert files[0] == source_identity("https://h/get?file=a&X-Amz-Signature=SECRET")
    assert all("file" not in one and "=" not in one for one in files)
    assert stable_identity("https://h/x.zip", "a=1/x") != stable_identity("https://h/x.zip", "a=2/x")
    assert source_identity(f"https://h/x?file=a@sha256:{HEX}") == f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("source", "recorded"),
    [
        ("https://me:SECRET@h/x.gz?sig=SECRET", "https://h/x.gz"),
        ("/home/me/x.gz", "file:x.gz"),
        ("file:/home/me/x.zip#data/a.gz", "file:x.zip#data/a.gz"),
        ("file:///home/me@work/x.gz", "file:x.gz"),
        (f"/home/me/x#1.gz@sha256:{HEX}", f"file:x#1.gz@sha256:{HEX}"),
        ("~/runs/a/quantize:F16", "file:quantize:F16"),
        ("data/x.gz", "data/x.gz"),
        ("pypi:a==1#b/c", "pypi:a==1#b/c"),
        ("init:tiny:1", "init:tiny:1"),
        ("base", "base"),
        ("/", "file:…"),
    ],
)
def test_a_source_is_recorded_without_secrets_and_absolute_paths(source: str, recorded: str):
    assert public_source(source) == recorded == public_source(recorded)
