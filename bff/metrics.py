"""Every metric of the gateway: one declaration gives its name, type, labels and description.

To add one, declare a constant in this file and count it with `Telemetry`; a test fails for a metric
that nothing counts. `bff.ops.gauges` reads the gauges. `docs/OPERATIONS.md` and `/metrics` are made
from these declarations.
"""

from dataclasses import dataclass
from typing import Final, Literal

from bff.errors import REFUSALS


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as Prometheus sees it.

    Attributes:
        labels: names, in the order in which a count names their values.
        buckets: a histogram's upper bounds; +Inf is added.
        initial: values of the only label that are exported as 0 from the start. Without that,
            Prometheus sees no increase when a counter first appears as 1, and no alert fires.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    initial: tuple[str, ...] = ()


BACKGROUND_TASKS: Final = (
    "settings_watch",
    "loop_lag",
    "key_refresh",
    "readiness",
    "streams",
    "listeners",
    "store_heartbeats",
    "store_listener",
    "store_revocations",
)
"""The loops that run beside requests."""

METRICS: Final[dict[str, Metric]] = {}


def _counter(name: str, help_: str, *labels: str, initial: tuple[str, ...] = ()) -> str:
    METRICS[name] = Metric("counter", help_, labels, initial=initial)
    return name


def _gauge(name: str, help_: str, *labels: str) -> str:
    METRICS[name] = Metric("gauge", help_, labels)
    return name


def _histogram(name: str, help_: str, buckets: tuple[float, ...]) -> str:
    METRICS[name] = Metric("histogram", help_, buckets=buckets)
    return name


# A counter's name is exported with "_total" at its end.

REQUESTS: Final = _counter(
    "bff_requests",
    "Answers to browsers, by route, status, error code, served_by (fast or asgi; none for bytes "
    "that are not an HTTP request) and environment (empty without a valid token).",
    "route",
    "status",
    "code",
    "served_by",
    "environment",
)
ANSWER_SECONDS: Final = _histogram(
    "bff_answer_seconds",
    "Time from a request's head to its answer. Answers from memory count in the first bucket; the "
    "others waited for a load, upstream or the store.",
    (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
CACHE: Final = _counter(
    "bff_cache",
    "Lookups of a session, alone or as a member of a list, by environment and result: hit (fresh "
    "copy), stale (old copy, reloaded in the background), miss (loaded), joined (waited for the "
    "load of another request), negative (upstream has no such session), last_resort (old copy, "
    "because a load failed or has to wait), late (no copy, and the load has to wait for the "
    "budget), unavailable (a member of a list that could not be loaded for another reason).",
    "environment",
    "result",
)
CACHE_RESULTS: Final = (
    "hit",
    "stale",
    "miss",
    "joined",
    "negative",
    "last_resort",
    "late",
    "unavailable",
)
LOADS: Final = _counter(
    "bff_loads",
    "Loads of a session from upstream, by environment and outcome: ok or an error code.",
    "environment",
    "outcome",
)
LOAD_OUTCOMES: Final = (
    "ok",
    *(code for code in REFUSALS if code.startswith("upstream_")),
    "internal",
)
LOAD_SECONDS: Final = _histogram(
    "bff_load_seconds",
    "Duration of loads from upstream.",
    (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
AGE_SERVED_SECONDS: Final = _histogram(
    "bff_age_served_seconds",
    "Age of the copies that browsers got.",
    (0.1, 1.0, 2.0, 5.0, 30.0, 60.0),
)
TOKEN_TESTS: Final = _counter(
    "bff_token_tests",
    "Tokens that upstream verified because the gateway has no key for them, by outcome: ok or an "
    "error code.",
    "outcome",
)
KEY_FETCHES: Final = _counter(
    "bff_key_fetches",
    "Fetches of a token source's key set, by outcome: ok, unusable or an error code.",
    "source",
    "outcome",
)
BAD_TOKENS: Final = _counter(
    "bff_bad_tokens",
    "Requests without a valid token, by reason: token_missing, token_invalid, token_expired, "
    "token_revoked, secret_key_sent.",
    "reason",
    initial=(*(code for code in REFUSALS if code.startswith("token_")), "secret_key_sent"),
)
LIMITED: Final = _counter(
    "bff_limited",
    "Requests refused by a rate limit, by limit: address, page, bad-token, caller, stream-open, "
    "stop, message, message-daily, message-total.",
    "limit",
    initial=(
        *("address", "page", "bad-token", "caller"),
        *("stream-open", "stop", "message", "message-daily", "message-total"),
    ),
)
DROPPED_FIELDS: Final = _counter(
    "bff_dropped_fields",
    "Top-level fields of sessions that the gateway does not know and no policy names; dropped.",
)
MISMATCHED_COPIES: Final = _counter(
    "bff_mismatched_copies",
    "Copies dropped because their content belongs to another session than their key.",
)
STORE_COMMANDS: Final = _counter(
    "bff_store_commands",
    "Commands to the store, by outcome: ok, late, error, foreign (a value that no gateway wrote; "
    "dropped).",
    "outcome",
)
LEASES: Final = _counter(
    "bff_leases", "Parts of rate-limit windows leased from the store, by limit.", "limit"
)
SHARED_COPIES: Final = _counter(
    "bff_shared_copies",
    "Copies in the store, by result: used, kept, purged (after their load had begun), superseded "
    "(by a later load, or the replica lost its claim), dropped (foreign or corrupt).",
    "result",
)
SHARED_INTROSPECTIONS: Final = _counter(
    "bff_shared_verdicts",
    "Introspections of tokens in the store, by result: used, kept, superseded (by a later one, or "
    "the replica lost its claim), dropped (foreign or corrupt).",
    "result",
)
SHARED_PEEKS: Final = _counter(
    "bff_shared_peeks",
    "Peeks in the store, by result: used, kept, superseded (by a later one, or the replica lost "
    "its claim), dropped (foreign or corrupt).",
    "result",
)
STORE_UP: Final = _gauge(
    "bff_store_up", "1 if the store answers, 0 if this replica works without it."
)
REPLICAS: Final = _gauge("bff_replicas", "Replicas that the store listed last.")
LOG_LINES_DROPPED: Final = _counter(
    "bff_log_lines_dropped",
    "Log lines dropped because their event was logged too often in one second.",
    "event",
)
LOG_LINES_LOST: Final = _counter(
    "bff_log_lines_lost",
    "Log lines that were not written, by reason: full (the reader is too slow or stopped), failed "
    "(no space, or no reader).",
    "reason",
    initial=("full", "failed"),
)
SPANS_LOST: Final = _counter(
    "bff_spans_lost",
    "Spans that were not sent, because the queue was full or their export failed.",
)
BACKGROUND_RESTARTS: Final = _counter(
    "bff_background_restarts",
    "Restarts of a loop that runs beside requests and ended or hung: "
    f"{', '.join(BACKGROUND_TASKS)}.",
    "task",
    initial=BACKGROUND_TASKS,
)
BACKGROUND_UP: Final = _gauge(
    "bff_background_up", "1 while the loop runs, 0 while it waits for its restart.", "task"
)
LOOP_LAG_SECONDS: Final = _histogram(
    "bff_loop_lag_seconds",
    "Delay of the event loop's wake-up after a sleep; above 0.1 the process is overloaded.",
    (0.005, 0.025, 0.1, 0.5, 2.0),
)
WORKER_UP: Final = _gauge(
    "bff_worker_up",
    "With --workers: 1 if the worker answered this scrape, 0 if it hangs or is being replaced.",
    "worker",
)
BUILD_INFO: Final = _gauge("bff_build_info", "Always 1; the label is the version.", "version")
PURGES: Final = _counter("bff_purges", "Sessions that the operator purged.")
RELOADS: Final = _counter(
    "bff_reloads",
    "Reloads of the settings without a restart, by outcome: ok, failed.",
    "outcome",
    initial=("ok", "failed"),
)
SETTINGS_CURRENT: Final = _gauge(
    "bff_settings_current",
    "0 while changed settings are invalid and the former ones stay in force, else 1.",
)
SIGNING_KEY_USED: Final = _gauge(
    "bff_signing_key_used_timestamp_seconds",
    "When a signing key last verified a token (Unix seconds, 0 for never), by its position in the "
    "settings, from 1. Remove a rotated key once this no longer rises.",
    "environment",
    "key",
)
CLOSED_CONNECTIONS: Final = _counter(
    "bff_closed_connections",
    "Connections that the gateway closed, by reason: bad_request, head_too_large, "
    "incomplete_request, unread_answer, too_many, too_many_of_address; because of "
    "BFF_MAX_BUFFERED_BYTES: overloaded (a request is refused), buffers_full (an answer is refused "
    "or cut off); no_descriptor (the system had none, so the connection waits).",
    "reason",
    initial=("too_many", "too_many_of_address", "overloaded", "buffers_full", "no_descriptor"),
)
CONNECTIONS: Final = _gauge("bff_connections", "Open connections of browsers.")
BUFFERED_BYTES: Final = _gauge(
    "bff_buffered_bytes", "Bytes in memory of unanswered requests and unread answers."
)
COPIES: Final = _gauge("bff_copies", "Copies and negative entries in memory.")
COPY_BYTES: Final = _gauge("bff_copy_bytes", "Approximate size of the copies in memory, in bytes.")
LOADS_IN_FLIGHT: Final = _gauge("bff_loads_in_flight", "Loads in flight.")
LOADS_QUEUED: Final = _gauge(
    "bff_loads_queued", "Loads that wait for the upstream budget.", "environment"
)
VERIFIED_TOKENS: Final = _gauge("bff_verified_tokens", "Verified tokens in memory.")
REVOCATIONS: Final = _gauge("bff_revocations", "Revocations in force.")
STRETCHED_TTL_SECONDS: Final = _gauge(
    "bff_stretched_ttl_seconds",
    "Longest stretch: the copies of the caller with the most hot sessions are fresh for this time.",
    "environment",
)
BUDGET_LEFT: Final = _gauge(
    "bff_budget_left",
    "Loads that the upstream budget allows now; +Inf without a budget.",
    "environment",
)
READY: Final = _gauge(
    "bff_ready",
    "1 if the gateway can verify the environment's tokens, else 0; upstream does not count.",
    "environment",
)
UPSTREAM_UP: Final = _gauge(
    "bff_upstream_up",
    "1 if upstream answered the last readiness check and accepted the secret key, else 0.",
    "environment",
)
UPSTREAM_CHECKS: Final = _counter(
    "bff_upstream_checks",
    "Readiness checks of upstream, by environment and outcome: ok or an error code.",
    "environment",
    "outcome",
)
SECRET_KEY_IN_USE: Final = _gauge(
    "bff_secret_key_in_use",
    "Position of the secret key that is sent upstream, from 1; above 1, upstream rejected the "
    "first.",
    "environment",
)
SECRET_KEY_CHANGES: Final = _counter(
    "bff_secret_key_changes",
    "Times that upstream rejected a secret key and the next one took over, by environment.",
    "environment",
)
STREAMS: Final = _gauge("bff_streams", "Chat streams that are open.")
STREAM_ENDS: Final = _counter(
    "bff_stream_ends",
    "Chat streams that ended, by reason: upstream (it ended, was cut or is long overdue), "
    "browser (left), expired, revoked, key (its key was removed), policy (the settings no longer "
    "allow it), shutdown, "
    "unreadable (an event of upstream could not be read), overloaded (no memory for an event), "
    "refused (after upstream had answered), failed.",
    "reason",
    initial=("upstream", "browser", "expired", "revoked", "key", "policy", "unreadable"),
)
STREAM_SECONDS: Final = _histogram(
    "bff_stream_seconds", "Duration of chat streams.", (1.0, 10.0, 60.0, 120.0, 300.0, 600.0)
)
STREAM_FIRST_SECONDS: Final = _histogram(
    "bff_stream_first_record_seconds",
    "Time from a stream's request to its first record with data.",
    (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
STREAM_EVENTS: Final = _counter(
    "bff_stream_events",
    "Events of chat streams from upstream, by kind: batch, ping, done, error, other (dropped), "
    "odd_body (a record whose body is left out, because two parsers could read it differently).",
    "event",
    initial=("batch", "ping", "done", "error", "other", "odd_body"),
)
STREAM_HEADERS_DROPPED: Final = _counter(
    "bff_stream_headers_dropped",
    "Headers of records in chat streams that browsers do not get, by name; other for every name "
    "that the gateway does not know.",
    "name",
)
LISTENERS: Final = _gauge(
    "bff_listeners", "Event streams of session state that are open: browsers that do not poll."
)
FOLLOWED: Final = _gauge(
    "bff_followed_sessions", "Session ids that listeners follow; each is loaded once a TTL."
)
LISTENER_REASONS: Final = (
    *("expired", "revoked", "key", "policy", "unverified", "outdated", "shutdown", "failed"),
)
"""Reasons that the last event of a listener gives."""
LISTENER_ENDS: Final = _counter(
    "bff_listener_ends",
    "Event streams of session state that ended, by reason: browser (left, or read too slowly), "
    "expired, revoked, key (its key was removed), policy (the settings changed what it may see), "
    "unverified (upstream has to verify its token again), outdated (a newer token of the person "
    "names a new session), shutdown, failed.",
    "reason",
    initial=("browser", *LISTENER_REASONS),
)
LISTENER_SECONDS: Final = _histogram(
    "bff_listener_seconds",
    "Duration of event streams of session state.",
    (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0),
)
PEEKS: Final = _counter(
    "bff_peeks",
    "Requests upstream that tell listeners whether an agent is answering, by environment and "
    "outcome: ok or an error code.",
    "environment",
    "outcome",
)
LISTENER_EVENTS: Final = _counter(
    "bff_listener_events",
    "Events sent to listeners, by kind: sessions (the first), session, gone, end.",
    "event",
    initial=("sessions", "session", "gone", "end"),
)
MESSAGES: Final = _counter(
    "bff_messages",
    "Messages that browsers sent to chats, by kind (message, stop, other) and error code; an empty "
    "code for messages that upstream accepted.",
    "kind",
    "code",
)
MESSAGE_FIELDS_DROPPED: Final = _counter(
    "bff_message_fields_dropped", "Keys of messages that the policy did not send upstream."
)
