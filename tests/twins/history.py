"""Histories of twin worlds: settings, secrets, and steps, all drawn from one seed.

A secret is what observers must not see: sessions that none of their tokens names, and hidden fields
of a session that they read. The two worlds differ in secrets, and in steps that happen in one world
only: requests of entitled callers, purges, revocations and changes of secrets.

Some effects of entitled callers are allowed, for they are what sharing means. Histories are drawn
so that these effects cannot show, and everything that still shows is a leak:

- *The budget.* Loads of every caller spend from it. So while it is small, entitled requests are
  `QUIET` seconds apart from all others.
- *Hot sessions.* Copies count as fresh for `max(TTL, hot sessions ÷ budget)` seconds. So the budget
  is so large that the second number is below the TTL, or no entitled caller sends a request.
- *Upstream's 429.* After it no load starts for any caller. So entitled callers are quiet then.
- *Limits of an address.* Callers behind one address share them. So entitled callers have addresses
  of their own.
- *Shared copies.* `Age` and `Cache-Status` tell a reader that another reader loaded the copy. So in
  one world only, entitled callers ask only for sessions that no observer may read.
- *Ids.* Both ids lead to a session, also where the policy hides the external id: a caller who names
  one of them and asks by the other says both. So readers of the session with hidden fields do not
  ask for it by its other id, and operators do not name it by that id.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import quote

from support.world import read
from twins import combinations
from twins.combinations import Combination

from bff.demo.upstream import Document, session

LEFT, RIGHT = 0, 1
BOTH: Final = (LEFT, RIGHT)
QUIET = 10.0
"""Seconds after which the small budget, and every queue for it, is as without a request."""
CLOSED_AT = "2026-02-01T00:00:00.500Z"


def friendly(number: int) -> str:
    return str(session(number)["id"])


@dataclass(frozen=True)
class Person:
    """A caller: a person with one token."""

    name: str
    address: str
    scopes: tuple[str, ...]
    subject: str = ""
    """The person of the token; empty for the person's name."""
    issued: float = -60.0
    """Seconds from the start of the history."""
    lasts: float = 7200.0
    """Seconds from the start of the history to the token's expiry."""
    jti: str | None = None
    forged: bool = False
    text: str | None = None
    """Sent in place of a token."""
    bad: bool = False
    """No gateway accepts the token."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that the token names."""
        parts = (scope.split(":", 2) for scope in self.scopes)
        return tuple(part[2] for part in parts if len(part) == 3 and part[0] == "read")


ONE, TWO, THREE, FOUR, HIDDEN = friendly(1), friendly(2), friendly(3), friendly(4), friendly(9)
BURST = tuple(f"burst-{number}" for number in range(8))
"""Ids without a session: each list of them takes more than the small budget."""
X, Y = friendly(50), friendly(51)
X_NAMES = ("ext-x", "ext/z%2Fq", "tab\tx")
Y_NAMES = ("ext-y",)
HIDDEN_NAMES = ("hid-1", "hid-2")
SECRET_IDS = (X, Y, *X_NAMES, *Y_NAMES)

HOME, OFFICE = "192.0.2.1", "2001:db8::1"
_OBSERVERS = (
    Person("ann", HOME, (*read(ONE), *read(HIDDEN))),
    Person("ann, with a newer token", HOME, (*read(ONE), *read(HIDDEN)), "ann", issued=-1.0),
    Person("bob", OFFICE, tuple(read("chat-2", "a/b: c%?#ü"))),
    Person("cleo", OFFICE, tuple(read(THREE, "chat-1", "gone", FOUR, HIDDEN)), jti="cleo"),
    Person("dan, with one external id", "192.0.2.4", tuple(read("chat-1"))),
    Person("eve, with many ids", "192.0.2.5", tuple(read(*(f"many-{n}" for n in range(22)), TWO))),
    Person("fay, with a burst", "192.0.2.6", tuple(read(*BURST))),
    Person(
        "gus, with channels", "192.0.2.7", tuple(read("ext-x:channels:main", f"{X}:channels:a"))
    ),
    Person(
        "hal, without a session", "192.0.2.8", ("write:sessions:ext-x", "read:runs", "admin:tasks")
    ),
    Person("ida, with a short token", "192.0.2.9", tuple(read("chat-1", THREE)), lasts=15.0),
)
_STRANGERS = (
    Person("stranger, without a token", HOME, (), text="", bad=True),
    Person("stranger, with nonsense", "192.0.2.20", (), text="e30.e30.e30", bad=True),
    Person("stranger, as X's reader", OFFICE, tuple(read(X, *X_NAMES)), forged=True, bad=True),
    Person(
        "stranger, as cleo",
        "192.0.2.21",
        tuple(read(THREE, "chat-1", "gone", FOUR, HIDDEN)),
        "cleo",
        jti="cleo",
        forged=True,
        bad=True,
    ),
    Person("late, an expired reader of X", HOME, tuple(read(X)), lasts=-30.0, bad=True),
)
ENTITLED = (
    Person("reader of X", "198.51.100.1", tuple(read(X, Y))),
    Person("reader of X by its names", "198.51.100.2", tuple(read(*X_NAMES, *Y_NAMES)), jti="xr"),
    Person("reader of all", "198.51.100.3", ("read:sessions",)),
)
PEOPLE = {person.name: person for person in (*_OBSERVERS, *_STRANGERS, *ENTITLED)}
_READERS_OF_HIDDEN = {person.name for person in PEOPLE.values() if HIDDEN in person.ids}


@dataclass(frozen=True)
class Secret:
    """The part of a session that may differ between the worlds."""

    exists: bool = True
    external_id: str | None = None
    closed: bool = False
    trouble: str = ""
    """How upstream fails for this session alone."""
    noise: int = 0
    """Decides about fields that no policy of these histories shows."""

    def document(self, number: int) -> Document:
        """The session as upstream has it."""
        closed = {"closedAt": CLOSED_AT, "closedReason": "done"} if self.closed else {}
        noise = {
            "tags": ["user:1"] * self.noise,
            "metadata": {"internal": "x" * 50 * self.noise},
            "triggerConfig": {"basePayload": {"noise": self.noise}},
        }
        return session(number, self.external_id, **closed, **noise)


Secrets = dict[str, tuple[Secret, Secret]]
"""By name, in the left and in the right world."""
NUMBERS = {"X": 50, "Y": 51, "the hidden fields": 9}


@dataclass(frozen=True)
class Step:
    """One thing that happens.

    Attributes:
        at: seconds from the start.
        worlds: where it happens.
    """

    at: float
    worlds: tuple[int, ...] = field(default=BOTH, kw_only=True)

    @property
    def label(self) -> str:
        """Its kind, in words, for differences of the same kind."""
        return str(self)


@dataclass(frozen=True)
class Ask(Step):
    """A request of a person."""

    person: str
    target: bytes
    """The raw path and query."""
    process: int = 0
    method: str = "GET"
    condition: str = ""
    """If-None-Match: "" for none, "any", or "tags" for those of secret sessions."""
    cookie: bool = False
    cursor: tuple[str, str, int] | None = None
    """A parameter, and which of the cursors that a person got is its value."""
    about: str = ""
    """The kind of what it requests, for messages."""

    @property
    def observed(self) -> bool:
        return PEOPLE[self.person] not in ENTITLED

    @property
    def label(self) -> str:
        return f"{'a bad token' if PEOPLE[self.person].bad else 'a token'} asks for {self.about}"

    def __str__(self) -> str:
        more = [
            f" if-none-match={self.condition}" if self.condition else "",
            " by cookie" if self.cookie else "",
            f" {self.cursor[0]}=cursor {self.cursor[2]} of {self.cursor[1]}" if self.cursor else "",
        ]
        what = f"{self.method} {self.target.decode()}{''.join(more)}"
        return f"{self.person} sends {what} to process {self.process + 1} ({self.about})"


@dataclass(frozen=True)
class Weather(Step):
    """Upstream fails from now on, or works again."""

    kind: str

    def __str__(self) -> str:
        return f"upstream: {self.kind}"


@dataclass(frozen=True)
class Purge(Step):
    """An operator purges a session."""

    id: str

    def __str__(self) -> str:
        return f"an operator purges {self.id!r}"


@dataclass(frozen=True)
class Revoke(Step):
    """An operator revokes tokens."""

    kind: str
    value: str

    def __str__(self) -> str:
        return f"an operator revokes {self.kind} {self.value!r}"


@dataclass(frozen=True)
class Change(Step):
    """A secret changes upstream."""

    name: str
    secret: Secret

    def __str__(self) -> str:
        return f"{self.name} changes upstream to {self.secret}"


@dataclass(frozen=True)
class History:
    """All that two worlds share, and their secrets."""

    seed: int
    combination: Combination
    secrets: Secrets
    steps: tuple[Step, ...]

    @property
    def entitled(self) -> bool:
        """Whether an entitled caller sends a request."""
        return any(isinstance(step, Ask) and not step.observed for step in self.steps)

    def lines(self) -> Iterable[str]:
        """Write it for a person."""
        plainest = {name: levels[0] for name, levels in combinations.LEVELS.items()}
        changed = [f"{n}={v}" for n, v in self.combination.items() if v != plainest[n]]
        yield "  settings: " + (", ".join(changed) or "the plainest")
        for name, (left, right) in self.secrets.items():
            if left != right:
                yield f"  {name}: left {left}"
                yield f"  {' ' * len(name)}  right {right}"
        for step in self.steps:
            where = "" if step.worlds == BOTH else f" [{('left', 'right')[step.worlds[0]]} only]"
            yield f"  {step.at:7.2f} s  {step}{where}"


GAPS = (0.0,) * 6 + (0.01, 0.02, 0.05, 0.05, 0.3, 1.0, 1.1, 2.1, 3.0, 6.0, 12.0, 31.0, 65.0)
"""Seconds between two steps. A call upstream takes less than 0.05."""
SLOW_GAPS = (0.0, 0.0, 0.05, 1.1, 2.1, 3.0, 3.0, 6.0, 12.0, 31.0)
"""The same for histories about the age of copies."""
_SOMEWHERE = ((LEFT,), (RIGHT,), (LEFT,), (RIGHT,), BOTH)
_TROUBLE = ("500", "401", "429", "HTML", "silent")
_LISTS = (
    b"",
    b"?page[size]=1",
    b"?page[size]=2",
    b"?page[size]=100&filter[type]=chat.agent",
    b"?filter[externalId]=ext-x",
    b"?filter[taskIdentifier]=other",
    b"?filter[status]=CLOSED",
    b"?filter[status]=ACTIVE",
    b"?filter[createdAt][period]=7d&page[size]=3",
    b"?page[after]=AAAAAAAAAAAAAAAAAAAAAAAA",
    b"?filter[nonsense]=1",
)
_HOSTILE = (
    b"a%252Fb",
    b"ext%2Fz%252Fq",
    b"tab%09x",
    b"ext-x:channels:main",
    b"ext-x%3Achannels%3Amain:in",
    b"..",
    b"%00",
    b"%ff",
    b"session_",
    b"x" * 300,
    b"ext-x/",
    b"EXT-X",
)


class _Draft:
    """A history that is being drawn."""

    def __init__(self, seed: int, combination: Combination) -> None:
        self.dice = random.Random(f"history {seed}")
        self.combination = combination
        self.small = combination["budget"] == "6/second"
        # At a TTL of 0 the number of hot sessions decides about freshness.
        allowed = not (self.small and combination["TTL"].startswith("0"))
        self.traffic = allowed and self.dice.random() < 0.7
        self.at = 0.0
        self.quiet_until = 0.0
        self.weather = "fine"
        self.steps: list[Step] = []
        hidden = combination["fields"] != "default"
        introspected = "upstream" in combination["verify"]
        weights = (10, 10 if hidden else 2, 6 if introspected else 1)
        self.focus = self.dice.choices(("sessions", "fields", "claims"), weights)[0]
        self.people = self._people()
        # A few ids, so that observers and entitled callers meet.
        self.secret_ids = self.dice.choice(
            ([X, "ext-x"], [X, self.dice.choice(X_NAMES)], [X], [Y, *Y_NAMES])
        )

    def _people(self) -> list[Person]:
        """A few callers, so that their requests meet; some of them come more often."""
        dice = self.dice
        people = dice.sample(_OBSERVERS, 3)
        if self.focus == "fields":
            return [*(p for p in _OBSERVERS if HIDDEN in p.ids), *people]
        if self.focus == "claims":
            return [PEOPLE["cleo"], PEOPLE["stranger, as cleo"], dice.choice(_STRANGERS), people[0]]
        return [*people[:1] * 3, *people[1:], dice.choice(_STRANGERS)]

    def draw(self) -> tuple[Step, ...]:
        about = self.focus
        kinds = {
            self.unnamed: 30 if about == "sessions" else 15,
            self.named: 40 if about == "fields" else 20,
            self.list: 40 if about == "claims" else 16,
            self.entitled: 24 if self.traffic else 0,
            self.change_weather: 4,
            self.purge: 8,
            self.revoke: 3,
            self.change: 5,
            self.other: 2,
            self.spend: 16 if self.small else 0,
        }
        if about == "claims":  # the first cursor is the one of the first id
            self.ask(
                PEOPLE["cleo"],
                b"/api/v1/sessions?page[size]=1",
                "a list",
                method="GET",
                condition="",
                cookie=False,
            )
        gaps = SLOW_GAPS if about == "fields" else GAPS
        if about == "fields":  # one copy at two ages
            for _ in range(2):
                reader = self.dice.choice(self.people[:3])
                self.retrieve(reader, _segment(HIDDEN), "a named id", process=0, cookie=False)
                self.at += self.dice.choice((3.0, 6.0, 12.0))
        for _ in range(self.dice.randint(8, 30)):
            self.at = round(max(self.at + self.dice.choice(gaps), self.quiet_until), 2)
            (kind,) = self.dice.choices(list(kinds), list(kinds.values()))
            kind()
        return tuple(self.steps)

    # -- observers

    def ask(self, person: Person, target: bytes, about: str, **more: object) -> None:
        dice = self.dice
        step = Ask(
            self.at,
            person.name,
            target,
            process=int(self.combination["processes"] == "2" and dice.random() < 0.3),
            method=dice.choice(("GET",) * 7 + ("HEAD",)),
            condition=dice.choice(("",) * 5 + ("any", "tags")),
            cookie=dice.random() < 0.15,
            about=about,
        )
        self.steps.append(replace(step, **more))  # type: ignore[arg-type]

    def retrieve(self, person: Person, segment: bytes, about: str, **more: object) -> None:
        self.ask(person, b"/api/v1/sessions/" + segment, about, **more)

    def unnamed(self) -> None:
        dice, person = self.dice, self.dice.choice(self.people)
        choice = dice.random()
        if choice < 0.6:
            self.retrieve(person, _segment(dice.choice(self.secret_ids)), "a secret id")
        elif choice < 0.75:
            about = "an invented id"
            self.retrieve(person, _segment(dice.choice(["no-such", friendly(98)])), about)
        elif choice < 0.85 and person.name not in _READERS_OF_HIDDEN:
            self.retrieve(person, _segment(dice.choice(HIDDEN_NAMES)), "a hidden id")
        else:
            self.retrieve(person, dice.choice(_HOSTILE), "a hostile id")

    def named(self) -> None:
        person = self.dice.choice(self.people)
        ids = _both_forms(person)
        if self.focus == "fields" and HIDDEN in ids and self.dice.random() < 0.7:
            ids = [HIDDEN]
        about = "a named id" if ids else "an id of others"
        self.retrieve(person, _segment(self.dice.choice(ids or ["chat-1", TWO])), about)

    def list(self) -> None:
        dice, person = self.dice, self.dice.choice(self.people)
        if dice.random() < (0.2 if self.focus == "claims" else 0.6):
            self.ask(person, b"/api/v1/sessions" + dice.choice(_LISTS), "a list")
            return
        parameter = dice.choice(("page[after]", "page[before]", "page[before]"))
        other = person if dice.random() < 0.6 else dice.choice(self.people)
        if person.bad and person.subject:  # its claims make the same cursors
            other = PEOPLE[person.subject]
        cursor = (parameter, other.name, dice.choice((0, 0, 0, 1)))
        self.ask(person, b"/api/v1/sessions?page[size]=1", "a page of a list", cursor=cursor)

    def spend(self) -> None:
        """Ask for ids that are not named, then spend what is left of the budget."""
        if self.traffic and self.dice.random() < 0.6:
            self.entitled()
            self.at = max(self.at, self.quiet_until)
        people = [person for person in self.people if not person.bad]
        for _ in range(self.dice.randint(1, 3)):
            id_ = self.dice.choice(self.secret_ids)
            self.retrieve(self.dice.choice(people), _segment(id_), "a secret id")
        self.ask(PEOPLE["fay, with a burst"], b"/api/v1/sessions", "a burst", method="GET")

    def other(self) -> None:
        person, dice = self.dice.choice(self.people), self.dice
        method, target = dice.choice(
            (
                ("OPTIONS", b"/api/v1/sessions/ext-x"),
                ("POST", b"/api/v1/sessions/ext-x"),
                ("GET", b"/realtime/v1/sessions/ext-x/out"),
                ("GET", b"/healthz"),
            )
        )
        self.ask(person, target, "another route", method=method)

    # -- entitled callers, operators, upstream

    def entitled(self) -> None:
        if self.weather == "429":
            return
        if self.small:
            self.at += QUIET
            self.quiet_until = self.at + QUIET
        dice, person = self.dice, self.dice.choice(ENTITLED)
        worlds = dice.choice(_SOMEWHERE)
        ids = SECRET_IDS if person.name == "reader of all" else person.ids
        if person.name != "reader of all" and dice.random() < 0.2:
            self.ask(person, b"/api/v1/sessions", "a list", worlds=worlds)
        else:
            # The same sessions that observers ask for, or the history tells little.
            wanted = [id_ for id_ in ids if id_ in self.secret_ids] or ids
            self.retrieve(person, _segment(dice.choice(wanted)), "its session", worlds=worlds)

    def change_weather(self) -> None:
        if self.weather == "fine":
            self.weather = self.dice.choice(_TROUBLE)
            if self.weather == "429":
                self.at += QUIET
        else:
            self.weather = "fine"
        self.steps.append(Weather(self.at, self.weather))

    def purge(self) -> None:
        id_ = self.dice.choice((*self.secret_ids * 3, ONE, HIDDEN, "chat-2"))
        secret = id_ in SECRET_IDS
        worlds = self.dice.choice(_SOMEWHERE) if secret else BOTH
        self.steps.append(Purge(self.at, id_, worlds=worlds))

    def revoke(self) -> None:
        secret = [("session", id_) for id_ in self.secret_ids] + [("jti", "xr")]
        kind, value = self.dice.choice([*secret, ("jti", "cleo"), ("session", "chat-1")])
        worlds = self.dice.choice(_SOMEWHERE) if (kind, value) in secret else BOTH
        self.steps.append(Revoke(self.at, kind, value, worlds=worlds))

    def change(self) -> None:
        name = self.dice.choice(list(NUMBERS))
        secret = _secret(self.dice, name, self.combination)
        self.steps.append(
            Change(self.at, name, secret, worlds=self.dice.choice(((LEFT,), (RIGHT,))))
        )


def _segment(id_: str) -> bytes:
    return quote(id_, safe="").encode()


def _both_forms(person: Person) -> list[str]:
    """The ids that a token names, and the other ids of the same sessions."""
    forms = {"chat-1": ONE, "chat-2": TWO, "a/b: c%?#ü": FOUR}
    forms |= {id_: external for external, id_ in forms.items()}
    ids = [id_ for id_ in person.ids if ":channels:" not in id_ and id_ not in SECRET_IDS]
    return [*ids, *(forms[id_] for id_ in ids if id_ in forms)]


def _secret(dice: random.Random, name: str, combination: Combination) -> Secret:
    noise = dice.randrange(3)
    if name == "the hidden fields":
        return Secret(
            external_id=dice.choice((None, *HIDDEN_NAMES))
            if combinations.hides(combination, "externalId")
            else HIDDEN_NAMES[0],
            closed=combinations.hides(combination, "closedAt") and dice.random() < 0.5,
            noise=noise,
        )
    return Secret(
        exists=dice.random() < 0.75,
        external_id=dice.choice((None, *(X_NAMES[:1] + X_NAMES if name == "X" else Y_NAMES))),
        closed=dice.random() < 0.3,
        trouble=dice.choice(("",) * 7 + ("403", "500", "HTML")),
        noise=noise,
    )


def history(seed: int) -> History:
    """Draw the history of *seed*."""
    rows = combinations.pairwise()
    number, part = seed // len(rows), seed % len(rows)
    # Every second round is drawn, so that more than pairs of levels meet.
    dice = random.Random(f"settings {seed}")
    combination = rows[part] if number % 2 == 0 else combinations.draw(dice)
    secrets = {}
    for name in NUMBERS:
        left, right = (_secret(dice, name, combination) for _ in BOTH)
        if name == "the hidden fields":
            right = replace(right, closed=not left.closed)
            if not combinations.hides(combination, "closedAt"):
                right = replace(right, closed=left.closed)
        elif dice.random() < 0.3:
            right = left
        secrets[name] = (left, right)
    return History(seed, combination, secrets, _Draft(seed, combination).draw())
