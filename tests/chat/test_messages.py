"""The message policy: what browsers may append, and what of it is sent."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bff.chat.messages import BELIEVED, KEPT, MAX_DEPTH, Message, MessagePolicy
from bff.errors import Refused

POLICY = MessagePolicy()
USER: dict[str, Any] = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
PAYLOAD: dict[str, Any] = {"message": USER, "chatId": "chat-1", "trigger": "submit-message"}
TOOL: dict[str, Any] = {
    "type": "tool-weather",
    "toolCallId": "c1",
    "state": "output-available",
    "output": 1,
}


def body(payload: object = PAYLOAD, **others: Any) -> bytes:
    return json.dumps({"kind": "message", "payload": payload} | others).encode()


def sent(raw: bytes, policy: MessagePolicy = POLICY, ids: tuple[str, ...] = ()) -> Any:
    message = policy.read(raw)
    message.check_chat(("chat-1", *ids))
    return json.loads(message.encode("chat-1", lambda: "signed"))


def code(raw: bytes, policy: MessagePolicy = POLICY) -> str:
    with pytest.raises(Refused) as caught:
        policy.read(raw).check_chat(("chat-1",))
    return caught.value.refusal.code


def test_official_transports_message_is_sent_as_it_is() -> None:
    payload = PAYLOAD | {"messageId": "m1", "metadata": {"plan": "free"}}

    assert sent(body(payload)) == {"kind": "message", "payload": payload}


def test_stop_is_written_anew_without_a_payload() -> None:
    message = POLICY.read(b'{"kind": "stop", "payload": {"trigger": "close"}, "x": 1}')

    assert message.encode("chat-1", lambda: "signed") == b'{"kind":"stop"}'
    assert message.dropped == 2
    assert message.chat_id is None


@pytest.mark.parametrize(
    "changes",
    [
        {"trigger": "regenerate-message", "message": None},
        {"trigger": "action", "action": {"type": "undo"}, "message": None},
        {"message": USER | {"role": "assistant", "parts": [TOOL]}},
        {"message": USER | {"role": "assistant", "parts": [TOOL | {"state": "output-error"}]}},
        {"message": USER | {"role": "assistant", "parts": [TOOL | {"type": "dynamic-tool"}]}},
        {"messageId": None},
        {"metadata": {}},
    ],
)
def test_messages_of_each_kind_are_allowed(changes: dict[str, Any]) -> None:
    payload = PAYLOAD | changes
    if payload["message"] is None:
        del payload["message"]

    assert sent(body(payload))["payload"] == payload


CHANGES: list[dict[str, Any]] = [
    {"trigger": "close"}, {"trigger": "handover-prepare"}, {"trigger": None}, {"trigger": []},
    {"trigger": "Submit-Message"}, {"trigger": "preload"}, {"trigger": {}},
    {"chatId": "chat-2"}, {"chatId": None}, {"chatId": ["chat-1"]}, {"chatId": "Chat-1"},
    {"chatId": "chat-1 "}, {"chatId": ""}, {"chatId": 1},
    {"metadata": None}, {"metadata": []}, {"metadata": "x"}, {"metadata": 1},
    {"messageId": 1}, {"messageId": {}}, {"messageId": ["m"]},
    {"message": None}, {"message": "hello"}, {"message": []}, {"message": {}},
    {"message": [USER]},
    *({"message": USER | {"role": role}} for role in (
        "system", "assistant", "tool", "developer", "User", "USER", "", None, ["user"], 1,
    )),
    *({"message": USER | {"parts": parts}} for parts in (None, "x", {}, [1], ["text"], [[]])),
    *({"message": {"role": "assistant", "parts": parts}} for parts in (
        [], [TOOL, {"type": "text", "text": "I said"}], [TOOL | {"state": "input-available"}],
        [TOOL | {"state": "input-streaming"}], [TOOL | {"state": "approval-requested"}],
        [TOOL | {"state": None}], [TOOL | {"state": ["output-available"]}],
        [TOOL | {"type": "tool"}], [TOOL | {"type": None}], [TOOL | {"type": "text"}],
    )),
    {"message": {"role": "assistant"}},
]  # fmt: skip
HOSTILE = [
    b"", b"null", b"[]", b"1", b'"stop"', b"not json", b"\xff", b"\xef\xbb\xbf{}", b"{}",
    '{"kind": "stop"}'.encode("utf-16"), b'{"kind":"stop"}{"kind":"stop"}', b'{"kind":"stop",}',
    b'{"kind": "stop", "kind": "message"}', b'{"kind":"stop","k\\u0069nd":"stop"}',
    b'{"kind": "handover"}', b'{"kind": ["stop"]}', b'{"kind": "STOP"}', b'{"kind": null}',
    b'{"kind": "message"}', b'{"kind": "stop", "x": NaN}', b'{"kind": "stop", "x": 1e999}',
    b'{"kind": "stop", "x": ' + b"9" * 5000 + b"}",
    b'{"kind": "stop", "x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    b'{"kind": "stop", "x": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    b"[" * 1_000_000, b"]" * 1000 + b"[" * 1_000_000,
    *(body(payload) for payload in (None, [], "x", 1, {})),
    *(body(PAYLOAD | changes) for changes in CHANGES),
    *(body({key: value for key, value in PAYLOAD.items() if key != missing})
      for missing in ("message", "chatId", "trigger")),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_bodies_are_refused_with_a_text(number: int) -> None:
    assert code(HOSTILE[number]) in ("invalid_message", "foreign_chat")


@pytest.mark.parametrize("key", [*sorted(BELIEVED), "__proto__", "constructor", "CHATID", "x"])
def test_other_keys_of_a_payload_are_dropped_and_counted(key: str) -> None:
    message = POLICY.read(body(PAYLOAD | {key: "forged"}, sessionId="forged", runId=1))

    assert json.loads(message.encode("chat-1", lambda: ""))["payload"] == PAYLOAD
    assert message.dropped == 3


def test_setting_names_further_keys_that_are_kept() -> None:
    payload = PAYLOAD | {"model": "large", "chat": "no"}

    kept = sent(body(payload), MessagePolicy(fields=frozenset(("model",))))

    assert kept["payload"] == PAYLOAD | {"model": "large"}


def test_upstream_always_gets_the_id_of_the_path() -> None:
    payload = PAYLOAD | {"chatId": "session_1"}

    assert sent(body(payload), ids=("session_1", "chat-1"))["payload"]["chatId"] == "chat-1"
    assert code(body(payload)) == "foreign_chat"


@pytest.mark.parametrize("metadata", [{}, {"__bff": "forged", "plan": "free"}, {"__bff": None}])
def test_identity_takes_the_place_of_a_forged_one(metadata: dict[str, Any]) -> None:
    policy = MessagePolicy(identity_field="__bff")
    raw = body(PAYLOAD | {"metadata": metadata})

    written = sent(raw, policy)["payload"]["metadata"]

    assert written == metadata | {"__bff": "signed"}
    assert policy.read(raw).dropped == ("__bff" in metadata)


def test_identity_is_dropped_of_the_message_itself() -> None:
    said = USER | {"metadata": {"__bff": "forged", "plan": "free"}}

    written = sent(body(PAYLOAD | {"message": said}), MessagePolicy(identity_field="__bff"))

    assert written["payload"]["message"]["metadata"] == {"plan": "free"}
    assert "forged" not in json.dumps(written)


def test_identity_stands_in_messages_without_metadata() -> None:
    assert sent(body(), MessagePolicy(identity_field="__bff"))["payload"]["metadata"] == {
        "__bff": "signed"
    }


def test_identity_is_not_signed_if_the_policy_names_no_field() -> None:
    def sign() -> str:
        raise AssertionError

    assert b"metadata" not in POLICY.read(body()).encode("chat-1", sign)


def test_half_a_surrogate_pair_and_other_texts_arrive_unchanged() -> None:
    text = '\ud83d ü 😀 \u2028 \\ " \x00 [[[[ ]]'
    payload = PAYLOAD | {"action": text}

    assert sent(body(payload))["payload"]["action"] == text
    raw = body(payload).decode().encode()
    assert POLICY.read(raw).encode("chat-1", lambda: "").decode(), "valid UTF-8"


def test_depth_counts_no_brackets_within_strings() -> None:
    payload = PAYLOAD | {"action": "[" * 500 + '\\"[' * 500}

    assert sent(body(payload))["payload"] == payload


@pytest.mark.parametrize("levels", [0, MAX_DEPTH - 2])
def test_allowed_depth_is_read(levels: int) -> None:
    raw = body(PAYLOAD).replace(b'"hello"', b'"hello"')
    deep = b'{"kind":"stop","x":' + b"[" * (levels + 1) + b"]" * (levels + 1) + b"}"

    assert POLICY.read(raw).kind == "message"
    assert POLICY.read(deep).kind == "stop"


@pytest.mark.parametrize("piece", [b'\\"', b'"', b"[]", b"[", b'"["', b'{"a":', b"\\", b"1,"])
def test_cost_of_hostile_bodies_is_linear(piece: bytes) -> None:
    def seconds(size: int) -> float:
        raw = b'{"kind":"' + piece * (size // len(piece))
        began = time.process_time()
        with pytest.raises(Refused):
            POLICY.read(raw)
        return time.process_time() - began

    assert seconds(1024 * 1024) < 1.5, "a quadratic check takes minutes"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*sorted(KEPT), "role", "parts", "__bff", "x"]), inner, max_size=4
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*sorted(KEPT), *sorted(BELIEVED), "x"]), _JSON))
def test_only_allowed_keys_are_sent_of_any_payload(changes: dict[str, Any]) -> None:
    policy = MessagePolicy(identity_field="__bff")
    try:
        message = policy.read(body(PAYLOAD | changes))
        message.check_chat(("chat-1",))
        payload = json.loads(message.encode("chat-1", lambda: "signed"))["payload"]
    except Refused:
        return

    assert payload.keys() <= KEPT
    assert payload["chatId"] == "chat-1"
    assert payload["metadata"]["__bff"] == "signed"
    assert payload["trigger"] in ("submit-message", "regenerate-message", "action")
    assert payload.get("message", USER)["role"] in ("user", "assistant")


def test_message_is_frozen() -> None:
    assert isinstance(POLICY.read(body()), Message)
    with pytest.raises(AttributeError):
        POLICY.read(body()).kind = "stop"
