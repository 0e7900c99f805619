"""Errors that a user causes or meets, each one line and an exit code (pytest's)."""

from __future__ import annotations

PASS, FAIL, INTERRUPTED, INTERNAL, USAGE, NOTHING = range(6)


class FlashproofError(Exception):
    """One clear line for the user; `exit_code` is what the command ends with."""

    exit_code = INTERNAL


class UsageError(FlashproofError):
    """Bad input or configuration."""

    exit_code = USAGE


class LostError(FlashproofError):
    """The function hung or killed its process where no case was at stake."""

    exit_code = FAIL


class NothingError(FlashproofError):
    """There is nothing to judge by."""

    exit_code = NOTHING


class InterruptedRunError(FlashproofError):
    """What there is, is not the whole."""

    exit_code = INTERRUPTED
