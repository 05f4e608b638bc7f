"""The settings of live session state."""

from support.world import environ

from bff.config.reader import load


def test_event_streams_are_on_and_bounded_by_default() -> None:
    live = load(environ()).live

    assert (live.enabled, live.max_listeners, live.max_listeners_per_caller) == (True, 10000, 10)


def test_settings_of_event_streams_are_read() -> None:
    live = load(
        environ(BFF_LIVE="false", BFF_MAX_LISTENERS="5", BFF_MAX_LISTENERS_PER_CALLER="2")
    ).live

    assert (live.enabled, live.max_listeners, live.max_listeners_per_caller) == (False, 5, 2)
