"""Texts of settings: what each becomes, or the remedy that an invalid one gets."""

from collections.abc import Callable
from ipaddress import ip_network

import pytest

from bff.config import typed, values
from bff.config.typed import InvalidValue, Secret
from bff.config.values import Rate
from bff.limits import client_address


def name(parameter: object) -> str:
    return getattr(parameter, "__name__", repr(parameter)[:40])


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (typed.texts, "a, b\nc,,", ("a", "b", "c")),
        (values.flag, "true", True),
        (values.flag, "false", False),
        (values.port, "0", 0),
        (values.seconds, "0.5", 0.5),
        (values.seconds, "0", 0.0),
        (values.timeout, "60", 60.0),
        (values.count, "100", 100),
        (values.size, "0", 0),
        (values.rate, "5 / hour", Rate(5, 3600)),
        (values.rate, "off", None),
        (values.url, "https://x.example/base/", "https://x.example/base"),
        (values.host, "127.0.0.1", "127.0.0.1"),
        (values.host, "::", "::"),
        (values.host, "gateway-1.internal", "gateway-1.internal"),
        (values.host_names, "a,b.example", ("a", "b.example")),
        (values.origins, "*", ("*",)),
        (values.origins, "https://a.example:8443", ("https://a.example:8443",)),
        (values.environment_id, "cm0abcdefghijklmnopqrstuv", "cm0abcdefghijklmnopqrstuv"),
        (values.branch, "merge/12", "merge/12"),
        (values.url, "https://a.example/x@y.example/keys", "https://a.example/x@y.example/keys"),
        (values.shown, "plan,steps.*,a b", ("plan", "steps.*", "a b")),
        (values.networks, "fc00::/7,fe80::/10", (ip_network("fc00::/7"), ip_network("fe80::/10"))),
        (values.networks, "::1,10.0.0.0/8", (ip_network("::1"), ip_network("10.0.0.0/8"))),
    ],
    ids=name,
)
def test_text_is_read_as_its_value(read: Callable, text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "problem"),
    [
        (values.text, "a\nb", "control characters"),
        (values.flag, "on", "is not true or false"),
        (values.port, "99999", "is not a port"),
        (values.seconds, "nan", "is not a duration"),
        (values.seconds, "-1", "from 0 to 86400"),
        (values.positive_seconds, "0", "is zero"),
        (values.timeout, "61", "is too long; write seconds, at most 60"),
        (values.timeout, "5000", "is too long"),
        (values.count, "0", "1 or more"),
        (values.size, "64MB", "number of bytes"),
        (values.rate, "0/minute", "N is 1 or more"),
        (values.rate, "5/day", "N/hour"),
        (values.url, "ftp://x", "is not an address"),
        (values.url, "https://x:port", "is not an address"),
        (values.url, "https://user:pw@x", "remove the rest"),
        (values.url, "https://x/?a", "remove the rest"),
        (values.store, f"valkeys://host?ca_file=/{'x' * 5000}", "ca_file that is not a file"),
        (values.origins, "*,https://a.example", "either"),
        (values.origins, "https://A.example", "no browser sends"),
        (values.origins, "https://a.example:443", "no browser sends"),
        (values.origins, "a.example", "no browser sends"),
        (values.origins, "null", "no browser sends"),
        (values.origins, "https://a.example/", "no slash at the end"),
        (values.origins, "https://*.example", "no wildcard except * alone"),
        (values.host, "0.0.0.0:8787", "is not an address to listen on"),
        (values.host, "http://localhost", "without scheme and port"),
        (values.host_names, "gateway-1,gateway-2:9787", "'gateway-2:9787', which is not a host"),
        (values.host_names, "http://gateway", "write it without scheme, port and path"),
        (values.host_names, "*", "is not a host name"),
        (values.networks, "::1,10.0.0.1/8", "'10.0.0.1/8', which is not a network"),
        (values.networks, "0.0.0.0/0", "choose its address"),
        (values.networks, "10.0.0.0/8,::/0", "'::/0'"),
        (values.networks, "128.0.0.0/1", "choose its address"),
        (values.origins, "capacitor://localhost,null", "'null'"),
        (values.origins, "chrome-extension://*", "no wildcard"),
        (values.origins, "tauri://localhost/", "no slash at the end"),
        (values.origins, "https://a.example.org:0", "no browser sends"),
        (values.origins, "https://a.example.org:65536", "no browser sends"),
        (values.origins, "https://a.example.org:080", "no browser sends"),
        (values.origins, "https://a..b", "no browser sends"),
        (values.origins, "https://-a.b", "no browser sends"),
        (values.origins, "https://a.example.org.", "no browser sends"),
        (values.origins, "https://1.2.3", "no browser sends"),
        (values.origins, "http://2130706433", "no browser sends"),
        (values.origins, "https://[:::]", "no browser sends"),
        (values.origins, "https://[0:0:0:0:0:0:0:1]", "no browser sends"),
        (values.origins, "http://[fe80::1%25eth0]", "no browser sends"),
        (values.origins, "htps://a.example.org", "no browser sends"),
        (values.origins, "wss://a.example.org", "no browser sends"),
        (values.origins, "redis://localhost", "no browser sends"),
        (values.networks, "::ffff:0:0/96", "choose its address"),
        (values.networks, "10.0.0.0/8 172.16.0.0/12", "commas between them"),
        *((values.networks, text, "not the address of a proxy") for text in ("0.0.0.0/32", "::")),
        *((values.networks, text, "choose its address") for text in ("2000::/7", "2400::/12")),
        *(
            (values.environment_id, text, "is not the id of an environment")
            for text in ("unset", "UNKNOWN", "env_", "my-env", "org_1", "00000000-0000-0000")
        ),
        *(
            (values.branch, text, "is not the name of a branch")
            for text in ("HEAD", "@", "unset", "true", "12/merge")
        ),
        (values.branch, "remotes/origin/one", "without refs/heads/"),
        (values.url, "https://a.example/?", "remove the rest"),
        (values.url, "https://a.example/#", "remove the rest"),
        (values.url, "https://a.example:", "a colon without a port"),
        (values.url, "https://a.example/{tenant}", "characters that no address has"),
        (values.api_url, "https://a.example/api/v1/sessions/chat-1", "path of a route"),
        (values.store, "valkey://user:@valkey", "an empty password"),
        (values.store, "valkey://:@valkey:6379/0", "an empty password"),
        (values.store, "valkey://user:pass%0A@valkey", "a line end"),
        (values.store, "valkey://valkey:", "a colon without a port"),
        (values.shown, "plan;steps", "'plan;steps'; write commas"),
        (values.shown, "plan|steps", "write commas"),
        (values.names, "https://a.example;https://b.example", "write commas"),
        *((values.shown, text, "counts as a name") for text in ("all", "None", "plan,off")),
        (values.networks, "caddy", "(not 10.0.0.1/8, not a host name)"),
    ],
    ids=name,
)
def test_invalid_text_gets_a_remedy(read: Callable, text: str, problem: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        read(text)

    assert problem in str(raised.value)


def test_secret_shows_its_text_only_when_revealed() -> None:
    secret = Secret("sentinel")

    assert secret.reveal() == "sentinel"
    assert "sentinel" not in repr(secret) + str(secret) + f"{secret}"
    assert secret == Secret("sentinel")
    assert hash(secret) == hash(Secret("sentinel"))
    assert secret != Secret("other")


@pytest.mark.parametrize(
    "origin",
    [
        *("capacitor://localhost", "ionic://localhost", "tauri://localhost"),
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        "moz-extension://1b2c3d4e-1111-2222-3333-444455556666",
        "safari-web-extension://1B2C3D4E-1111-2222-3333-444455556666",
        *("https://app.example.com", "https://app.example.com:8443", "http://[::1]:3000"),
    ],
)
def test_origin_that_browsers_send_is_accepted(origin: str) -> None:
    assert values.origins(origin) == (origin,)


def test_network_of_mapped_addresses_is_one_of_ipv4() -> None:
    (network,) = values.networks("::ffff:10.0.0.0/104")

    assert client_address.is_trusted("10.1.2.3", [network])
    assert client_address.is_trusted("::ffff:10.1.2.3", [network])
    assert not client_address.is_trusted("11.1.2.3", [network])
