"""Traces of tools and of copy and paste in values, for every kind of setting."""

import base64
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.world import OWN_KEY, ROOT_KEY, SECRET_KEY, environ

from bff.config import typed
from bff.config.reader import load
from bff.config.settings import SETTINGS, SettingsError
from bff.config.typed import InvalidValue
from bff.ops.check import report

GOOD = {
    "TRIGGER_SECRET_KEY": SECRET_KEY,
    "TRIGGER_API_URL": "https://api.trigger.dev",
    "BFF_SIGNING_KEYS": OWN_KEY,
    "BFF_ENVIRONMENT_ID": "cm0abcdefghijklmnopqrstuv",
    "BFF_BRANCH": "feature/one",
    "BFF_VERIFY": "local,upstream",
    "BFF_UPSTREAM_BUDGET": "5/second",
    "BFF_ALLOWED_ORIGINS": "https://one.example.org,https://two.example.org",
    "BFF_HOST": "127.0.0.2",
    "BFF_PORT": "8080",
    "BFF_OPS_NAMES": "gateway-1",
    "BFF_TOKEN_COOKIE": "__Host-bff-token",
    "BFF_TRACING": "true",
    "BFF_TRUSTED_PROXIES": "10.0.0.0/8",
    "BFF_CACHE_TTL": "3",
    "BFF_CACHE_MAX_BYTES": "1000000",
    "BFF_MAX_HEADERS": "50",
    "BFF_STORE_URL": "valkey://gateway:password@valkey:6379/0",
    "BFF_EXPOSE_METADATA": "plan",
}
"""A good text for each kind of setting."""
SECRET = [name for name in GOOD if SETTINGS[name].secret]

MENDED: dict[str, Callable[[str], str]] = {
    "a line end": lambda text: text + "\n",
    "a line end of Windows": lambda text: text + "\r\n",
    "spaces around": lambda text: f"  {text} ",
    "a tab at the end": lambda text: text + "\t",
}
"""Changes that leave one meaning."""

REFUSED: dict[str, Callable[[str], str]] = {
    "double quotes of an env file": lambda text: f'"{text}"',
    "single quotes of an env file": lambda text: f"'{text}'",
    "quotes and a line end": lambda text: f'"{text}"\n',
    "quotes of a word processor": lambda text: f"“{text}”",
    "single quotes of a word processor": lambda text: f"\u2018{text}\u2019",
    "backquotes of a chat": lambda text: f"`{text}`",
    "a quote at one end": lambda text: f'{text}"',
    "a JSON list": lambda text: json.dumps([text]),
    "no-break space at the end": lambda text: text + "\u00a0",
    "no-break space in front": lambda text: "\u00a0" + text,
    "zero-width space": lambda text: text[:3] + "\u200b" + text[3:],
    "byte order mark in a variable": lambda text: "\ufeff" + text,
    "soft hyphen": lambda text: text[:3] + "\u00ad" + text[3:],
    "a NUL": lambda text: text + "\x00",
    "bytes that are not UTF-8": lambda text: text + "\udcff",
    "full-width characters": lambda text: "".join(chr(ord(c) + 0xFEE0) for c in text),
    "an unset variable in braces": lambda _: "${UNSET}",
    "an unset variable with a default": lambda _: "${UNSET:-}",
    "a variable of the shell": lambda _: "$VALUE",
    "a variable of Windows": lambda _: "%VALUE%",
    "a command of the shell": lambda _: "$(cat key)",
    "a template": lambda _: "{{ .Values.key }}",
    "an empty template": lambda _: "<no value>",
    "a placeholder in brackets": lambda _: "<your value>",
    "a placeholder": lambda _: "replace_me",
    "another placeholder": lambda _: "changeme",
    "a placeholder with a prefix": lambda _: "env_replace_me",
    "a placeholder of an example": lambda _: "tr_prod_sk_…",
    "a null": lambda _: "null",
    "an undefined": lambda _: "undefined",
    "a comment": lambda text: f"{text} # the comment",
    "a comment after a tab": lambda text: f"{text}\t# the comment",
    "an escape": lambda text: text + "\\n",
    "an export": lambda text: f"export X={text}",
    "quotes of HTML": lambda text: f"&quot;{text}&quot;",
    "quotes of a URL": lambda text: f"%22{text}%22",
    "quotes of Japanese": lambda text: f"「{text}」",
    "a JSON object": lambda text: json.dumps({"key": text}),
    "a semicolon at the end": lambda text: text + ";",
    "a continued line": lambda text: text + "\\",
    "an equals sign in front": lambda text: "=" + text,
    "an escaped variable": lambda _: "$$VALUE",
    "a variable of CMake": lambda _: "@VALUE@",
    "a reference to a password manager": lambda _: "op://vault/item/field",
    "a reference to a parameter": lambda _: "arn:aws:ssm:eu-west-1:123456789012:parameter/x",
    "an encrypted value": lambda _: "ENC[AES256_GCM,data:abc,iv:x,tag:y,type:str]",
    "an address of a file": lambda _: "file:///run/secrets/value",
    "a placeholder in capitals": lambda _: "YOUR_KEY_HERE",
    "the dots of a dashboard": lambda _: "••••••••",
    "an object of JavaScript": lambda _: "[object Object]",
    "a text that hides a value": lambda _: "[REDACTED]",
    "a token of a release": lambda _: "__VALUE__",
    "a token between at signs": lambda _: "@@VALUE@@",
    "a variable of Concourse": lambda _: "((value))",
    "a variable of Consul": lambda _: "%{value}",
    "an expression of GitLab": lambda _: "$[[ inputs.value ]]",
    "a tag of YAML": lambda _: "!secret value",
    "a null of YAML": lambda _: "~",
    "an empty list": lambda _: "[]",
    "an empty object": lambda _: "{}",
    "a word for nothing": lambda _: "(not set)",
    "a line end of a URL": lambda text: text + "%0A",
    "a space of a URL": lambda text: text + "%20",
    "a lost character": lambda text: text + "\ufffd",
}
"""Traces that would become a part of the value."""


LINES: dict[str, Callable[[str, str], str]] = {
    "a unit of systemd": lambda name, text: f"Environment={name}={text}",
    "a unit of systemd with quotes": lambda name, text: f'Environment="{name}={text}"',
    "an option of docker": lambda name, text: f"-e {name}={text}",
    "an option of helm": lambda name, text: f"--set {name}={text}",
    "a line of a Dockerfile": lambda name, text: f"ENV {name} {text}",
    "a line of YAML": lambda name, text: f"{name.lower()}: {text}",
    "an item of YAML": lambda name, text: f"- {name}={text}",
    "a line with spaces": lambda name, text: f"{name} = {text}",
}
"""Whole lines of other files, pasted as the value."""


def problems(changes: dict[str, str]) -> list[str]:
    try:
        load(environ(**changes))
    except SettingsError as exc:
        report(exc.reports)
        return exc.problems
    pytest.fail(f"accepted: {changes}")


# A test of each pair of a setting and a trace would take longer to collect and report than to run.


@pytest.mark.parametrize("mend", MENDED.values(), ids=MENDED)
def test_value_is_mended_if_it_can_mean_nothing_else(mend: Callable[[str], str]) -> None:
    for name, text in GOOD.items():
        assert load(environ(**{name: mend(text)})) == load(environ(**{name: text})), name


@pytest.mark.parametrize("spoil", REFUSED.values(), ids=REFUSED)
def test_trace_of_a_tool_is_refused_in_every_setting(spoil: Callable[[str], str]) -> None:
    for name, text in GOOD.items():
        found = problems({name: spoil(text)})

        assert all(problem.startswith(name) and "; " in problem for problem in found), found
        assert text not in "".join(found)


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_line_of_another_file_is_refused_in_every_setting(
    line: Callable[[str, str], str],
) -> None:
    for name, good in GOOD.items():
        (found,) = problems({name: line(name, good)})
        assert found.startswith(name), found
        assert "; " in found
        assert good not in found


@pytest.mark.parametrize("spoil", REFUSED.values(), ids=REFUSED)
def test_trace_of_a_tool_is_refused_in_a_file(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    file = tmp_path / "secret"
    for name in SECRET:
        text = spoil(GOOD[name]).removeprefix("\ufeff")
        file.write_text(text, errors="surrogateescape")
        changes = {f"{name}_FILE": str(file), name: ""}
        if text == GOOD[name]:
            load(environ(**changes))  # the mark is removed
        else:
            assert GOOD[name] not in "".join(problems(changes)), name


@pytest.mark.parametrize("name", SECRET)
@pytest.mark.parametrize("content", ["\ufeff{}\r\n", "{}\n\n", " {}"], ids=range(3))
def test_file_of_an_editor_is_mended(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content.format(GOOD[name]).encode())

    settings = load(environ(**{f"{name}_FILE": str(file), name: ""}))

    assert settings == load(environ(**{name: GOOD[name]}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"TRIGGER_API_URL": "https://api..trigger.dev"}, "a host that cannot exist"),
        ({"TRIGGER_API_URL": "https://-api.trigger.dev"}, "a host that cannot exist"),
        ({"TRIGGER_API_URL": f"https://{'a' * 64}.dev"}, "a host that cannot exist"),
        ({"TRIGGER_API_URL": "https://300.1.1.1"}, "a host that cannot exist"),
        ({"TRIGGER_API_URL": "https://api.trigger.dev:0"}, "is not an address"),
        ({"TRIGGER_API_URL": "api.trigger.dev"}, "is not an address"),
        ({"TRIGGER_API_URL": "https://api.trigger.dev/api/v1"}, "path of a route"),
        ({"TRIGGER_API_URL": "https://api.trigger.dev/a//b"}, "empty step"),
        ({"TRIGGER_API_URL": "https://api trigger.dev"}, "characters that no address has"),
        ({"TRIGGER_API_URL": "https://\u00fcpi.trigger.dev"}, "characters that no address has"),
        ({"BFF_STORE_URL": "valkey://valkey..internal"}, "a host that cannot exist"),
        ({"BFF_HOST": "a..b"}, "is not an address to listen on"),
        ({"BFF_OPS_NAMES": "a..b"}, "is not a host name"),
        ({"BFF_ENVIRONMENT_ID": "prod"}, "is not the id of an environment"),
        ({"BFF_ENVIRONMENT_ID": "proj_abcdefgh"}, "the reference of a project"),
        ({"BFF_ENVIRONMENT_ID": ROOT_KEY}, "holds a secret key"),
        ({"BFF_BRANCH": "refs/heads/one"}, "without refs/heads/"),
        ({"BFF_BRANCH": "one-$CI_BRANCH"}, "a variable that nothing replaced"),
        ({"BFF_CACHE_TTL": "2s"}, "without a unit"),
        ({"BFF_CACHE_TTL": "500ms"}, "without a unit"),
        ({"BFF_CACHE_TTL": "1,5"}, "is not a duration"),
        ({"BFF_CACHE_TTL": "1_0"}, "is not a duration"),
        ({"BFF_CACHE_TTL": "\u0662"}, "is not a duration"),
        ({"BFF_TRACING": "yes"}, "write one of them"),
        ({"BFF_TRACING": "1"}, "write one of them"),
        ({"BFF_TRACING": "True"}, "write one of them"),
        ({"BFF_PORT": "tcp://10.0.0.1:8787"}, "enableServiceLinks"),
        ({"BFF_SERVICE_HOST": "10.0.0.1"}, "enableServiceLinks"),
        *(
            ({name: "3"}, "did you mean BFF_CACHE_TTL?")
            for name in (
                *("bff_cache_ttl", "BFF-CACHE-TTL", "BFF.CACHE_TTL", " BFF_CACHE_TTL"),
                *("BFF_CACHE_TTL ", "\ufeffBFF_CACHE_TTL", "export BFF_CACHE_TTL"),
            )
        ),
        *(
            ({name: "https://trigger.example.com"}, "did you mean TRIGGER_API_URL?")
            for name in ("trigger_api_url", "TRIGGER_API_URL ", "TRIGGER_API_URL_FILE")
        ),
        ({"BFF_SIGNING_KEYS": f"{OWN_KEY},"}, "a comma without a key"),
        ({"BFF_SIGNING_KEYS": f",{OWN_KEY}"}, "a comma without a key"),
        ({"BFF_SIGNING_KEYS": f"{OWN_KEY},,{ROOT_KEY}"}, "a comma without a key"),
        ({"BFF_SIGNING_KEYS": f"{OWN_KEY},{OWN_KEY}"}, "same key as numbers 1 and 2"),
        *(
            ({"BFF_SIGNING_KEYS": f"{OWN_KEY}{joint}{OWN_KEY}2"}, "write a comma")
            for joint in (";", "|", "\\n", "\\r\\n")
        ),
        ({"TRIGGER_SECRET_KEY": f"{SECRET_KEY},{SECRET_KEY}"}, "same key as numbers 1 and 2"),
        ({"BFF_SIGNING_KEYS": base64.b64encode(b"0" * 64).decode()}, "in base64 as number 1"),
        ({"BFF_SIGNING_KEYS": base64.b64encode(b"a0" * 32 + b"\n").decode()}, "in base64"),
        ({"TRIGGER_SECRET_KEY": base64.b64encode(SECRET_KEY.encode()).decode()}, "in base64"),
        ({"BFF_SIGNING_KEYS": f"BFF_SIGNING_KEYS={OWN_KEY}"}, "repeats the setting's name"),
        ({"BFF_SIGNING_KEYS": f"export BFF_SIGNING_KEYS={OWN_KEY}"}, "repeats the setting's"),
        ({"BFF_SIGNING_KEYS": f"BFF_SIGNING_KEYS: {OWN_KEY}"}, "repeats the setting's name"),
        ({"BFF_SIGNING_KEYS": f"SIGNING_KEY={OWN_KEY}"}, "repeats the setting's name"),
        ({"BFF_SIGNING_KEYS": f"({OWN_KEY})"}, "in brackets"),
        ({"BFF_SIGNING_KEYS": f"**{OWN_KEY}**"}, "in brackets or asterisks"),
        ({"BFF_SIGNING_KEYS": "/run/secrets/bff-signing-keys-of-the-gateway"}, "a path and no key"),
        ({"BFF_SIGNING_KEYS": "https://vault.example.com/v1/secret/data/bff"}, "an address or"),
        ({"BFF_SIGNING_KEYS": f"my{ROOT_KEY}"}, "around a Trigger.dev key"),
        ({"BFF_SIGNING_KEYS": f"{ROOT_KEY}#comment"}, "malformed root key as number 1"),
        ({"TRIGGER_SECRET_KEY": f"{SECRET_KEY}."}, "is not a Trigger.dev secret key"),
        (
            {"BFF_SIGNING_KEYS": ",".join(f"{number:032}" for number in range(101))},
            "more than 100 keys",
        ),
        ({"TRIGGER_API_URL": "https://https://api.trigger.dev"}, "its scheme twice"),
        ({"TRIGGER_API_URL": "https:////api.trigger.dev"}, "is not an address"),
        ({"TRIGGER_API_URL": "https://api.trigger.dev."}, "no certificate names"),
        ({"TRIGGER_API_URL": "https://api.trigger.dev//x"}, "empty step"),
        ({"TRIGGER_API_URL": "https://api.trigger.dev/realtime/v1"}, "path of a route"),
        ({"BFF_ENVIRONMENT_ID": "example"}, "is not the id of an environment"),
        ({"BFF_ENVIRONMENT_ID": "true"}, "is not the id of an environment"),
        ({"BFF_BRANCH": "feat/one:"}, "is not the name of a branch"),
        ({"BFF_BRANCH": "feat one"}, "is not the name of a branch"),
        ({"BFF_BRANCH": "grün"}, "is not the name of a branch"),
        ({"BFF_BRANCH": "origin/feat"}, "without refs/heads/ or origin/"),
        ({"BFF_EXPOSE_METADATA": "$.plan"}, "another notation"),
        ({"BFF_EXPOSE_METADATA": "steps[*].title"}, "another notation"),
        ({"BFF_CONFIG": OWN_KEY}, "names a file that cannot be read"),
        ({"BFF_CONFIG": ROOT_KEY}, "is a key and not a path"),
        ({"BFF_CONFIG": "$CREDENTIALS_DIRECTORY/bff.toml"}, "begins with ~, $ or %"),
        ({"BFF_CONFIG": "~/bff.toml"}, "begins with ~, $ or %"),
        ({"BFF_CONFIG": '"/etc/bff.toml"'}, "is in quotes"),
    ],
    ids=repr,
)
def test_mistake_has_a_problem_with_a_remedy(changes: dict[str, str], text: str) -> None:
    (problem,) = problems(changes)

    assert text in problem
    assert not any(key in problem for key in (OWN_KEY, ROOT_KEY, SECRET_KEY))


@pytest.mark.parametrize(
    "changes",
    [
        {"BFF_ALLOWED_ORIGINS": "https://a.example.org,"},
        {"BFF_ALLOWED_ORIGINS": "https://a.example.org,https://a.example.org"},
        {"BFF_ALLOWED_ORIGINS": "https://a.example.org\nhttps://b.example.org\n"},
        {"TRIGGER_API_URL": "https://api.trigger.dev/"},
        {"TRIGGER_API_URL": "HTTPS://API.trigger.dev"},
        {"TRIGGER_API_URL": "https://trigger.example.org/base"},
        {"BFF_SIGNING_KEYS": f"{OWN_KEY},\n{ROOT_KEY}\n\n"},
        {"BFF_SIGNING_KEYS": "pa$$word-of-32-bytes-or-more-0123456789"},
        {"BFF_STORE_URL": "valkey://valkey.internal.:6379"},
        {"BFF_CACHE_TTL": ".5"},
        {"BFF_EXPOSE_METADATA": "Größe,ステップ.*"},
        *(
            {"BFF_ALLOWED_ORIGINS": f"{scheme}://localhost"}
            for scheme in ("capacitor", "ionic", "tauri", "http")
        ),
        {"BFF_ALLOWED_ORIGINS": "chrome-extension://abcdefghijklmnop"},
        {"BFF_ALLOWED_ORIGINS": "http://[::ffff:102:304]:3000,https://[::1]"},
        {"BFF_BRANCH": "dependabot/npm_and_yarn/a-1.2.3_(x)#4"},
        {"BFF_EXPOSE_TAGS": "USER_ID:*,!draft"},
        {"BFF_EXPOSE_METADATA": "my_token_count"},
        {"TRIGGER_API_URL": "http://trigger.internal.:3030", "BFF_ALLOW_HTTP_API_URL": "true"},
        {"BFF_SIGNING_KEYS": "/+aB3/home0123456789abcdefghijklmnopqrstuvw="},
        {"BFF_ALLOWED_ORIGINS": "moz-extension://0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"},
    ],
    ids=repr,
)
def test_unusual_text_is_a_value(changes: dict[str, str]) -> None:
    load(environ(**changes))


@pytest.mark.parametrize(
    "text",
    [
        "BFF_CACHE_MAX_BYTES = 9" + "9" * 5000,
        "BFF_CACHE_MAX_BYTES = 0x" + "f" * 5000,
        "BFF_CACHE_TTL = [[1]]",
        "BFF_CACHE_TTL = inf",
        "BFF_CACHE_TTL = nan",
        "[BFF_CACHE_TTL]\na = 1",
        "x = " + "[" * 5000,
        "[TRIGGER_SECRET_KEY_FILE]\na = 1",
        f'[[token_sources]]\nname = "{ROOT_KEY}"',
        f'[[environments]]\nname = "{ROOT_KEY}"',
        f"[policies.{ROOT_KEY}]\nBFF_PORT = 1",
        f"{ROOT_KEY} = 1",
        f'BFF_EXPOSE_FIELDS = ["{ROOT_KEY}"]',
    ],
    ids=lambda text: text[:40],
)
def test_odd_file_is_a_problem_without_a_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bff.toml"
    file.write_text(text)

    assert ROOT_KEY not in "".join(problems({"BFF_CONFIG": str(file)}))


def test_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "bff.toml"
    file.write_bytes("\ufeffBFF_CACHE_TTL = 7\r\n".encode())

    assert load(environ(BFF_CONFIG=str(file))).cache_ttl == 7


def test_key_in_the_wrong_variable_is_never_shown() -> None:
    for name in (*SETTINGS, "BFF_CONFIG", "BFF_SIGNING_KEYS_FILE"):
        changes: dict[str, str | None] = {name: ROOT_KEY}
        if name == "BFF_SIGNING_KEYS_FILE":
            changes["BFF_SIGNING_KEYS"] = None
        try:
            settings = load(environ(**changes))
        except SettingsError as exc:
            assert ROOT_KEY not in "".join(exc.problems) + report(exc.reports), name
        else:
            assert SETTINGS[name].secret, name
            assert ROOT_KEY not in report(settings.reports), name


def test_own_key_in_another_variable_too_is_never_shown() -> None:
    for name in SETTINGS:
        try:
            settings = load(environ(**{name: OWN_KEY}))
        except SettingsError as exc:
            shown = "".join(exc.problems) + report(exc.reports)
        else:
            shown = report(settings.reports)

        assert OWN_KEY not in shown, name


TEXTS = st.text(max_size=40) | st.sampled_from([spoil("value") for spoil in REFUSED.values()])


@given(st.sampled_from([*SETTINGS, "BFF_CONFIG", "TRIGGER_SECRET_KEY_FILE"]), TEXTS, TEXTS)
@example("TRIGGER_API_URL", "https://[", "")
@example("BFF_STORE_URL", "valkey://[", "]")
@example("BFF_TRUSTED_PROXIES", "fe80::1%", "0")
def test_any_text_is_a_value_or_a_problem(name: str, before: str, after: str) -> None:
    sentinel = "S3ntinelOfASecretThatIsLongEnough"
    changes: dict[str, str | None] = {name: before + sentinel + after}
    if name.endswith("_FILE"):
        changes[name.removesuffix("_FILE")] = None
    try:
        settings = load(environ(**changes))
    except SettingsError as exc:
        assert exc.problems
        if name in SETTINGS and not SETTINGS[name].secret:
            return
        assert sentinel not in "".join(exc.problems) + report(exc.reports)
    else:
        if SETTINGS[name].secret:
            assert sentinel not in report(settings.reports)


def test_check_accepts_plain_texts() -> None:
    for text in GOOD.values():
        typed.check("X", text, secret=True)
    with pytest.raises(InvalidValue):
        typed.check("X", ROOT_KEY, secret=False)


@pytest.mark.parametrize(
    "text",
    [
        ROOT_KEY,
        "eyJhbGciOiJIUzI1NiJ9.e30.c2ln",
        "0a" * 32,
        base64.b64encode(bytes(range(100, 140))).decode(),
    ],
)
def test_redact_hides_what_looks_like_a_secret(text: str) -> None:
    assert typed.redact(f"see {text} here") == "see (hidden) here"


@pytest.mark.parametrize("part", ["my_ab_", "A", "a=", "xx ", "$A", "tr_dev_", "{"])
def test_time_to_check_a_text_grows_with_its_length(part: str) -> None:
    began = time.process_time()
    text = part * 4000
    with contextlib.suppress(InvalidValue):
        typed.check("BFF_EXPOSE_METADATA", text, secret=False)
    typed.redact(text)

    # Before the patterns were bounded, each of these took minutes or for ever.
    assert time.process_time() - began < 1


def test_redact_leaves_words_and_paths() -> None:
    text = "BFF_SIGNING_KEYS /run/secrets/bff/signing_keys https://api.trigger.dev/a 0123456789"

    assert typed.redact(text) == text
