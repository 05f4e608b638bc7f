"""Compares the two worlds of a history, and shortens a history in which they differ."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise

from twins import combinations
from twins.history import BOTH, LEFT, PEOPLE, RIGHT, SECRET_IDS, Ask, History, Secrets
from twins.world import Call, Exchange, Record, Twin

from bff.copies.readiness import READINESS_ID


@dataclass(frozen=True)
class Difference:
    """A leak.

    Attributes:
        kind: what differs, and for which request; many histories may have one of the same kind.
        text: both sides.
    """

    kind: str
    text: str


def differences(history: History) -> list[Difference]:
    """Run *history* in both worlds.

    Returns:
        The first difference, for others may follow from it; and for each rule that a world breaks,
        the first time.
    """
    left, right = Twin(history, LEFT).run(), Twin(history, RIGHT).run()
    found = [*islice(_between(history, left, right), 1)]
    for rule in (_unanswered, _bad_tokens, _unnamed_calls, _request_ids):
        texts = (text for record in (left, right) for text in rule(history, record))
        found += [Difference(f"rule: {rule.__doc__}", text) for text in islice(texts, 1)]
    return found


def _between(history: History, left: Record, right: Record) -> Iterator[Difference]:
    sides = [[e for e in record.exchanges if e.step.observed] for record in (left, right)]
    for one, other in zip(*sides, strict=True):
        yield from _in_exchange(one, other)
    yield from _in_calls(*(_compared(history, record.calls) for record in (left, right)))


def _in_exchange(left: Exchange, right: Exchange) -> Iterator[Difference]:
    one, other = _parts(left), _parts(right)
    for name, part in one.items():
        if part != other[name]:
            lines = [f"    {side}: {line}" for side, line in _apart(part, other[name])]
            yield Difference(f"{name} when {left.step.label}", "\n".join([str(left.step), *lines]))


def _parts(exchange: Exchange) -> dict[str, list[str]]:
    """The parts of an answer: the first that differs is reported."""
    head, _, body = exchange.answer.decode("latin-1").partition("\r\n\r\n")
    took = "no answer" if exchange.took is None else f"{exchange.took:.6f} s"
    return {
        "status": [str(exchange.status)],
        "head": head.split("\r\n"),
        "body": [body],
        "time": [took],
        "decision": exchange.decisions[:1],
    }


def _apart(left: list[str], right: list[str]) -> Iterator[tuple[str, str]]:
    """The lines that only one side has, or all of them in another order."""
    only = [("left ", line) for line in left if line not in right]
    only += [("right", line) for line in right if line not in left]
    yield from only or [("left ", str(left)), ("right", str(right))]


def _compared(history: History, calls: list[Call]) -> list[Call]:
    """The calls upstream that observers cause, and those for sessions that they may read."""
    return [call for call in calls if not (history.entitled and call.id in SECRET_IDS)]


def _in_calls(left: list[Call], right: list[Call]) -> Iterator[Difference]:
    if left != right:
        lines = [
            f"    {side}: {call.at - 1000:.2f} s {call.path} with {call.credential}"
            for side, calls, others in (("left", left, right), ("right", right, left))
            for call in calls
            if call not in others
        ]
        yield Difference("calls upstream", "\n".join(lines) or "    in another order")


_COUNTER_STEP = 10_000
"""Requests of others between two of one caller: far more than in any history."""

# -- rules that each world keeps, whatever the other shows


def _unanswered(_: History, record: Record) -> Iterator[str]:
    """Every request is answered."""
    for exchange in record.exchanges:
        if exchange.took is None:
            yield str(exchange.step)


def _bad_tokens(_: History, record: Record) -> Iterator[str]:
    """A bad token gets neither a session nor a list."""
    for exchange in record.exchanges:
        served = exchange.status in (200, 304) and b"/sessions" in exchange.step.target
        if PEOPLE[exchange.step.person].bad and served:
            yield f"{exchange.status} when {exchange.step}"


def _unnamed_calls(history: History, record: Record) -> Iterator[str]:
    """Upstream is called only for ids that a token names."""
    named = {id_ for name in _people(history) for id_ in PEOPLE[name].ids}
    every = any("read:sessions" in PEOPLE[name].scopes for name in _people(history))
    for call in record.calls:
        if call.id == READINESS_ID:
            continue  # the gateway's own question when it starts: no caller causes it
        if ":channels:" in call.id or not (call.id in named or (every and call.id in SECRET_IDS)):
            caused = f" when {call.caused_by.step}" if call.caused_by else ""
            yield f"GET {call.path}{caused}"


def _request_ids(_: History, record: Record) -> Iterator[str]:
    """The ids of requests count nothing."""
    ids = [e.request_id.decode() for e in record.exchanges if e.step.observed and e.request_id]
    # Each hexadecimal part of an id as a number; a counter takes small steps.
    numbers = [[int(part, 16) for part in re.findall(r"[0-9a-f]+", id_)] for id_ in ids]
    for parts in zip(*numbers, strict=False):
        steps = [abs(after - before) for before, after in pairwise(parts)]
        if len(steps) > 1 and any(steps) and max(steps) < _COUNTER_STEP:
            yield ", ".join(ids[:3])


def _people(history: History) -> set[str]:
    return {step.person for step in history.steps if isinstance(step, Ask)}


# -- shortening


def shorten(history: History, kind: str) -> History:
    """Leave out what a difference of this *kind* does not need."""

    def still(candidate: History) -> bool:
        return any(found.kind == kind for found in differences(candidate))

    for plainer in (_fewer_steps, _plainer_settings, _fewer_secrets, _fewer_steps):
        history = plainer(history, still)
    return history


def _plainer_settings(history: History, still: Callable[[History], bool]) -> History:
    for name, levels in combinations.LEVELS.items():
        plain = replace(history, combination=history.combination | {name: levels[0]})
        # The fields decide about what is a secret.
        if name != "fields" and plain.combination != history.combination and still(plain):
            history = plain
    return history


def _fewer_secrets(history: History, still: Callable[[History], bool]) -> History:
    for name, (left, right) in history.secrets.items():
        for same in ((right, right), (left, left)):
            changed: Secrets = history.secrets | {name: same}
            if left != right and still(replace(history, secrets=changed)):
                history = replace(history, secrets=changed)
                break
    for number, step in enumerate(history.steps):
        steps = list(history.steps)
        steps[number] = replace(step, worlds=BOTH)
        if step.worlds != BOTH and still(replace(history, steps=tuple(steps))):
            history = replace(history, steps=tuple(steps))
    return history


def _fewer_steps(history: History, still: Callable[[History], bool]) -> History:
    size = max(1, len(history.steps) // 2)
    while True:
        at = 0
        while at < len(history.steps):
            fewer = history.steps[:at] + history.steps[at + size :]
            candidate = replace(history, steps=fewer)
            if still(candidate):
                history = candidate
            else:
                at += size
        if size == 1:
            return history
        size //= 2
