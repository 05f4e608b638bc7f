"""The browser-facing gateway of Trigger.dev sessions."""

__version__ = "0.1.0"
