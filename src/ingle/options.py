"""Checks of options that several rooms share."""

from __future__ import annotations

from numbers import Integral

from ingle.errors import OptionError

__all__ = ["boolean", "positive_integer"]


def positive_integer(name: str, value: object) -> int:
    """An option that counts something. Raises `OptionError` for anything but an integer of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise OptionError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def boolean(name: str, value: object) -> bool:
    """`value`, if it is True or False. Raises `OptionError` otherwise."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, got {value!r}")
    return value
