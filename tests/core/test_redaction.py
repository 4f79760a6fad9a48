import copy

import pytest

from meditron.core.errors import InputError, MeditronError, SourceError, is_out_of_memory
from meditron.core.redaction import public_address, redact

HEX = "a" * 64


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("https://h/x.gz", "https://h/x.gz"),
        ("https://h/x.gz?X-Amz-Signature=SECRET&a=b", "https://h/x.gz"),
        ("HTTPS://me:SECRET@h:80/x?SECRET", "HTTPS://h:80/x"),
        ("https://SECRET@h/x", "https://h/x"),
        ("https://me:SEC/RET@h/x", "https://…"),
        ("https://me:SEC?RET@h/x", "https://…"),
        ("http://[::1]:80/x?SECRET", "http://[::1]:80/x"),
        ("https://h/x.zip#data/a.gz", "https://h/x.zip#data/a.gz"),
        ("https://h/x.zip?SECRET#data/a.gz@sha256:" + HEX, "https://h/x.zip#data/a.gz@sha256:" + HEX),
        ("https://h/x#access_token=SECRET", "https://h/x#…"),
        ("https://h/x#a?SECRET", "https://h/x#…"),
        ("https://h/a b?c=SECRET d", "https://h/a b"),
        ("https:h/x?SECRET", "https:h/x"),
    ],
)
def test_an_address_loses_its_secrets(address: str, public: str):
    assert public_address(address) == public
    assert "SECRET" not in redact(f"before {address}: after, '{address}' ({address})")


def test_the_text_around_an_address_stays():
    message = "https://h/x?s=SECRET: refused (see https://h/y), and http:, https: or file: x=1"
    assert redact(message) == "https://h/x: refused (see https://h/y), and http:, https: or file: x=1"


def test_no_error_holds_a_secret():
    error = InputError("https://me:SECRET@h/x?s=SECRET", "wrong", hint="try https://h/?SECRET instead")
    for one in (error, copy.copy(error), SourceError("'http://a:SECRET@b'")):
        assert "SECRET" not in f"{one} {one.args} {one.message} {one.hint}"


def test_out_of_memory_is_recognised_by_what_libraries_say():
    torch_says = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"
    for error in (MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError(torch_says)):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes"), OSError(28, "No space left"), MeditronError("out of memory")):
        assert not is_out_of_memory(error)
