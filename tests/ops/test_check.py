"""`bff check`: the report of the settings, its notes, and the command."""

import subprocess
from pathlib import Path

from support.command_line import bff
from support.world import (
    NEW_KEY,
    OWN_KEY,
    SECRET_KEY,
    Gateway,
    environ,
    running_upstream,
)

from bff.config import settings
from bff.ops.check import Finding, Page, Result, lines


def check(changes: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return bff("check", *arguments, environ=changes)


def test_report_shows_each_setting_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{OWN_KEY}\n{OWN_KEY}2\n")
    (tmp_path / "bff.toml").write_text(
        'BFF_CACHE_TTL = 3\n[policies."chat.agent"]\nBFF_EXPOSE_METADATA = ["progress"]\n'
    )
    changes = environ(
        BFF_SIGNING_KEYS=None,
        BFF_SIGNING_KEYS_FILE=str(tmp_path / "keys"),
        BFF_CONFIG=str(tmp_path / "bff.toml"),
    )

    done = check(changes)

    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["TRIGGER_SECRET_KEY"] == ["TRIGGER_SECRET_KEY", "set", "environment"]
    assert rows["BFF_SIGNING_KEYS"][1:] == ["set,", "2", "of", "them", str(tmp_path / "keys")]
    assert rows["BFF_CACHE_TTL"] == ["BFF_CACHE_TTL", "3", "BFF_CONFIG"]
    assert rows["BFF_CACHE_CLOSED_TTL"] == ["BFF_CACHE_CLOSED_TTL", "30"]
    before, _, defaults = done.stdout.partition("\nDefaults\n")
    assert before.startswith("Set\n")
    assert "BFF_CACHE_TTL" in before
    assert "BFF_CACHE_CLOSED_TTL" in defaults
    assert "`" not in done.stdout
    assert "\nSet for policy 'chat.agent'\n" in done.stdout
    assert "metadata.progress" in done.stdout
    assert set(settings.SETTINGS) <= set(rows)
    assert OWN_KEY not in done.stdout + done.stderr
    assert SECRET_KEY not in done.stdout + done.stderr


def test_every_problem_is_shown_with_its_remedy() -> None:
    changes = environ(BFF_RATE_LIMIT="many", BFF_CACHE_TLL="2", TRIGGER_API_URL="http://u:pw@up/")

    done = check(changes)

    assert done.returncode == 2
    assert "BFF_RATE_LIMIT is not a limit; write N/second" in done.stderr
    assert "did you mean BFF_CACHE_TTL?" in done.stderr
    assert "TRIGGER_API_URL may hold a host, a port and a path" in done.stderr
    assert "pw@" not in done.stdout + done.stderr


def test_problem_names_the_page_that_helps() -> None:
    own = Finding(Result.PROBLEM, "the clocks differ", Page.TOKENS)
    other = Finding(Result.PROBLEM, "it caches")

    assert lines(own, Page.PROXY).endswith(f"See {Page.TOKENS}")
    assert lines(other, Page.PROXY).endswith(f"See {Page.PROXY}")
    assert "See" not in lines(Finding(Result.OK, "it works"), Page.PROXY)
    assert f"\nSee {Page.SETTINGS}" in check(environ(BFF_PORT="x")).stderr
    assert check(environ()).stdout.endswith("upstream, and the store.\n"), "the next step"


def test_long_ttl_is_noted() -> None:
    assert "BFF_CACHE_TTL is 2000 seconds" in check(environ(BFF_CACHE_TTL="2000")).stdout
    assert "BFF_CACHE_TTL is" not in check(environ(BFF_CACHE_TTL="60")).stdout


def test_check_says_what_it_cannot_prove_about_chats() -> None:
    chats = environ(BFF_CHAT="true", BFF_SIGNING_KEYS=NEW_KEY)

    assert "the secret key needs write:sessions" in check(chats).stdout
    assert "BFF_CHAT is on" not in check(environ()).stdout


def test_working_gateway_passes_every_test(gateway: Gateway, live: dict[str, str]) -> None:
    done = check(live, "--probe", "--url", gateway.url)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "PROBLEM" not in done.stdout
    for text in (
        "the key is accepted and may read sessions",
        "left in the environment's bucket",
        "a token that names the session gets 200",
        "for another session gets 403 403 403, a request without a token gets 401",
        "the key belongs to environment env_test",
        "isolation: a token of another environment gets 401",
        "a page of a foreign origin cannot read answers",
        "no proxy in front caches answers",
        "the clock of the gateway agrees",
        "the events of a stream come at once",
    ):
        assert text in done.stdout, text
    assert done.stdout.count("\n  OK ") == 13
    assert OWN_KEY not in done.stdout
    assert "eyJ" not in done.stdout


def test_address_without_a_gateway_is_a_problem(live: dict[str, str]) -> None:
    done = check(live, "--probe", "--url", "http://127.0.0.1:1")

    assert done.returncode == 2
    assert "127.0.0.1:1 does not answer (unavailable: Connection refused): check" in done.stdout


def test_unreachable_address_is_a_problem_with_its_reason(
    live: dict[str, str], upstream: running_upstream
) -> None:
    for url, reason in (
        ("http://no-such-host.invalid", "unavailable: no such host"),
        (f"https://127.0.0.1:{upstream.port}", "unavailable: TLS with it fails"),
    ):
        assert f"{url} does not answer ({reason})" in check(live, "--probe", "--url", url).stdout
    for wrong in ("localhost:8787", "app.example.com", "http://", "http://[::1", "http://a:99999"):
        done = check(live, "--probe", "--url", wrong)
        assert "--url is not an address; write one like https://" in done.stderr
        assert done.returncode == 2
    done = check(live, "--probe", "--url", "https://ann:url-password-sentinel@app.example.com")
    assert (done.returncode, "--url may hold a host, a port and a path" in done.stderr) == (2, True)
    assert "sentinel" not in done.stdout + done.stderr
