"""One request, and what the gateway has established about it so far."""

from dataclasses import dataclass

from bff.config.runtime import RuntimeConfig
from bff.gateway.routes import OTHER, Route
from bff.limits.rate import UNLIMITED_WINDOW, Window
from bff.request import RequestHead


@dataclass(slots=True)
class RequestContext:
    """The state of one request.

    Attributes:
        now: seconds on the clock that never jumps.
        wall: Unix seconds.
        address: the key under which the browser's address is counted.
        window: the window that was charged last; the answer's headers show it.
        environment: the environment of the verified token; empty without one.
        waited: seconds that the request waited for loads; None if it did not wait.
        caller_charged: whether the request was charged to its caller, which happens once and only
            after the token is verified.
        config: the configuration by which the gateway decided to wait; after a change of it the
            request is decided anew. None if the answer does not depend on it any more.
    """

    head: RequestHead
    request_id: bytes
    now: float
    wall: float
    config: RuntimeConfig | None
    route: Route = OTHER
    address: str = ""
    token: bytes = b""
    window: Window = UNLIMITED_WINDOW
    environment: str = ""
    waited: float | None = None
    caller_charged: bool = False
