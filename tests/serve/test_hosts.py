"""Where the server may listen."""

import socket
from typing import Any

import pytest

from meditron.core.errors import UsageError
from meditron.serve.config import ServeConfig
from meditron.serve.hosts import check_bind
from meditron.store.people import ROLES, People, Person

KEYS = People({"ann": ("0" * 64, Person("ann", frozenset(ROLES)))})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    check_bind(ServeConfig(host=host), People())


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",  # noqa: S104
        "::",
        "",
        "192.0.2.7",
        "0",
        "fe80::1",
        "2001:db8::1",
    ],
)
def test_other_addresses_need_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="can be reached from other machines") as error:
        check_bind(ServeConfig(host=host), People())
    assert "--api-key-file" in (error.value.hint or "")
    check_bind(ServeConfig(host=host), KEYS)


@pytest.mark.parametrize("addresses", [["192.0.2.7"], ["127.0.0.1", "192.0.2.7"], ["::1", "2001:db8::1"]])
def test_a_name_counts_with_all_its_addresses(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    def resolve(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in addresses]

    monkeypatch.setattr("meditron.serve.hosts.socket.getaddrinfo", resolve)
    with pytest.raises(UsageError, match="can be reached"):
        check_bind(ServeConfig(host="box.example.org"), People())


@pytest.mark.parametrize("host", ["no-such-host.invalid", "http://127.0.0.1", "127.0.0.1/8", "a" * 80])
def test_a_host_that_is_no_address_is_a_mistake(host: str) -> None:
    with pytest.raises(UsageError, match="host"):
        check_bind(ServeConfig(host=host), People())


@pytest.mark.parametrize("origin", ["*", "null", "example.org", "https://a/b", "https://*.a.org", "file://"])
def test_origins_are_named_one_by_one(origin: str) -> None:
    with pytest.raises(UsageError, match="origins must be"):
        check_bind(ServeConfig(origins=(origin,)), KEYS)


@pytest.mark.parametrize("name", ["*", "", "https://a.org", "a.org/b", "*.a.org"])
def test_allowed_hosts_are_names(name: str) -> None:
    with pytest.raises(UsageError, match="allowed_hosts must be"):
        check_bind(ServeConfig(allowed_hosts=(name,)), KEYS)
