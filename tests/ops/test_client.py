"""Requests to the ops port of a running gateway."""

import pytest
from support.world import Gateway

from bff.ops.client import OpsError, confirm, parse_address, send


def test_address_is_parsed_from_host_and_port_or_url() -> None:
    for text in ("[::1]:9787", "http://[::1]:9787", "http://[::1]:9787/"):
        assert parse_address(text) == ("::1", 9787)


def test_answer_of_the_ops_port_is_returned(gateway: Gateway) -> None:
    at = "127.0.0.1", gateway.ops_port

    assert send(*at, "GET", "/healthz") == (200, '{"status":"ok"}')
    assert send(*at, "POST", "/healthz", {})[0] == 405
    assert confirm(*at, "GET", "/healthz") == '{"status":"ok"}'


def test_refusal_is_an_error_with_the_answer(gateway: Gateway) -> None:
    with pytest.raises(OpsError, match="Name a jti"):
        confirm("127.0.0.1", gateway.ops_port, "POST", "/revocations", {})


def test_missing_gateway_is_an_error_with_a_remedy() -> None:
    with pytest.raises(OpsError, match=r"No gateway answers .* at 127.0.0.1:1 .*BFF_OPS_PORT"):
        send("127.0.0.1", 1, "GET", "/healthz")
