"""The commands that talk to a running gateway: revocations listed and undone."""

import click
import pytest
from click.testing import CliRunner, Result
from support.world import (
    NEW_KEY,
    SECRET_KEY,
    Gateway,
    World,
    environ,
    http,
    read,
    running_upstream,
)

from bff.cli import main


def bff(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ)


def test_revocation_is_listed_and_undone(gateway: Gateway) -> None:
    ops, token = f"127.0.0.1:{gateway.ops_port}", gateway.token(*read("chat-1"), jti="one")

    def status() -> int:
        headers = {"authorization": f"Bearer {token}"}
        return http.get(f"{gateway.url}/api/v1/sessions/chat-1", headers=headers).status_code

    assert bff("revoke", "--list", "--ops", ops).stdout == "No revocation is in force.\n"
    assert bff("revoke", "--jti", "one", "--ops", ops).exit_code == 0
    assert bff("revoke", "--issued-before", "1", "--ops", ops).exit_code == 0
    assert status() == 401
    listed = bff("revoke", "--list", "--ops", ops).stdout
    assert "jti one, kept until " in listed
    assert "all tokens, issued before 1970-01-01T00:00:01" in listed

    undone = bff("revoke", "--undo", "--jti", "one", "--ops", ops)
    assert undone.exit_code == 0, undone.stderr
    assert undone.stdout.startswith("Undone: jti one, kept until ")
    assert status() == 200
    assert "jti" not in bff("revoke", "--list", "--ops", ops).stdout
    again = bff("revoke", "--undo", "--jti", "one", "--ops", ops)
    assert again.exit_code == 0, "an undoing that was not confirmed is sent again"
    assert again.stdout.startswith("Undone: jti one, kept until ")
    other = bff("revoke", "--undo", "--jti", "other", "--ops", ops)
    assert other.exit_code == 1
    assert "No such revocation is in force" in other.stderr


@pytest.mark.parametrize("text", ["", " \n"])
def test_option_with_an_empty_value_is_refused(text: str) -> None:
    """The value of an unset variable would mint a token for nobody, or choose another port."""
    tried = set()
    for name, command in main.commands.items():
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag:
                word = option.opts[0]
                done = bff(name, word, text)
                assert (done.exit_code, f"{word} is empty" in done.stderr) == (2, True), word
                tried.add(word)

    assert {"--actor", "--jti", "--session", "--ops", "--host", "--explain", "--url"} < tried


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (("revoke", "--list", "--undo"), "--list shows all revocations"),
        (("revoke", "--list", "--jti", "one"), "--list shows all revocations"),
        (("revoke", "--list", "chat-1"), "--list shows all revocations"),
        (("token", "--explain", "x", "chat-1"), "--explain mints no token"),
        (("token", "--explain", "x", "--actor", "ann"), "--explain mints no token"),
        (("status", "--watch", "--once"), "one of --watch and --once"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_option_without_effect_is_refused(command: tuple[str, ...], text: str) -> None:
    done = bff(*command)

    assert done.exit_code == 2
    assert text in done.stderr


@pytest.mark.parametrize(
    "command", [("status", "--once"), ("revoke", "--list"), ("revoke", "--jti", "one")]
)
def test_another_port_is_told_in_one_line(
    gateway: Gateway, upstream: running_upstream, command: tuple[str, ...]
) -> None:
    for port in (gateway.port, upstream.port):
        done = bff(*command, "--ops", f"127.0.0.1:{port}")

        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "{" not in done.stderr


def test_token_in_the_place_of_its_id_revokes_nothing(gateway: Gateway) -> None:
    ops, token = f"127.0.0.1:{gateway.ops_port}", gateway.token(*read("chat-1"), jti="one-token")
    for text in (token, f"Bearer {token}", SECRET_KEY):
        for option in ("--jti", "--actor"):
            done = bff("revoke", option, text, "--ops", ops)
            assert (done.exit_code, "is a token or a key" in done.stderr) == (1, True)

    changes = {name: value for name, value in environ().items() if value is not None}
    assert "its jti is one-token" in bff("token", "--explain", token, **changes).stdout


async def test_undoing_reaches_the_other_workers(upstream) -> None:
    with Gateway(upstream.port, "--workers", "2") as gateway:
        ops, token = f"127.0.0.1:{gateway.ops_port}", gateway.token(*read("chat-1"), jti="one")
        headers = {"authorization": f"Bearer {token}"}

        def statuses() -> set[int]:
            url = f"{gateway.url}/api/v1/sessions/chat-1"
            return {http.get(url, headers=headers).status_code for _ in range(12)}

        assert bff("revoke", "--jti", "one", "--ops", ops).exit_code == 0
        assert statuses() == {401}
        assert bff("revoke", "--undo", "--jti", "one", "--ops", ops).exit_code == 0
        assert statuses() == {200}


async def test_log_level_hides_less_severe_lines(world: World) -> None:
    await world.start(BFF_LOG_LEVEL="error")
    before = len(world.logged())
    await world.get("chat-2", token=world.token(*read("chat-1")))
    world.telemetry.log.warning("hidden")
    world.telemetry.log.error("shown")

    assert [line["event"] for line in world.logged()[before:]] == ["shown"]
    world.reload(BFF_LOG_LEVEL="info")
    world.telemetry.log.info("shown_again")
    assert world.logged()[-1]["event"] == "shown_again"


async def test_reload_says_which_settings_changed(world: World) -> None:
    world.reload(BFF_CACHE_TTL="7", BFF_EXPOSE_TAGS="public:*", BFF_SIGNING_KEYS=NEW_KEY)

    (line,) = [x for x in world.logged() if x["event"] == "settings_reloaded"]
    assert line["changed"] == ["BFF_CACHE_TTL", "BFF_SIGNING_KEYS", "BFF_EXPOSE_TAGS"]
    assert "n" * 40 not in world.log.getvalue()
