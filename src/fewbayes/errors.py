"""Errors that tell a user what to mend. Everything else is our own mistake and keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: the message names the value, the limit and the way out.

    numpy, torch and json raise plain ValueErrors for mistakes of ours and for damaged files; neither is caught as this.
    """
