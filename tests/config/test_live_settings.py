"""The settings of live session state."""

import pytest
from support.world import environ

from bff.config.reader import load
from bff.config.settings import SettingsError
from bff.config.values import Rate


def test_event_streams_are_on_and_bounded_by_default() -> None:
    live = load(environ()).live

    assert (live.enabled, live.max_listeners, live.max_listeners_per_caller) == (True, 10000, 10)


def test_settings_of_event_streams_are_read() -> None:
    live = load(
        environ(BFF_LIVE="false", BFF_MAX_LISTENERS="5", BFF_MAX_LISTENERS_PER_CALLER="2")
    ).live

    assert (live.enabled, live.max_listeners, live.max_listeners_per_caller) == (False, 5, 2)


def test_answering_is_off_and_has_a_budget_by_default() -> None:
    live = load(environ()).live

    assert live.answering is False
    assert live.answering_budget == Rate(5, 1)


@pytest.mark.parametrize("shown", ["answering", "plan,answering.since", "*", "*.title"])
def test_answering_replaces_nothing_that_the_policy_shows(shown: str) -> None:
    settings = environ(BFF_EXPOSE_ANSWERING="true", BFF_EXPOSE_METADATA=shown)
    with pytest.raises(SettingsError) as caught:
        load(settings)

    assert "metadata.answering of the application" in str(caught.value)
    assert load(settings | {"BFF_EXPOSE_METADATA": "plan.answering"}).live.answering
