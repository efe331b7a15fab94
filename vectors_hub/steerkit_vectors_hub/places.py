"""Where this user's files are: from an environment variable, or in a folder of the home folder."""

from __future__ import annotations

import os
from pathlib import Path

from steerkit.errors import SteerKitError


def place(variable: str, base: str, usual: str, rest: str, error: type[SteerKitError]) -> Path:
    """The path that a variable names, or `rest` in the folder that the variable `base` names, usually `usual`.

    Raises:
        SteerKitError: `error`: a home folder in it can't be found, because there is no such user, or no HOME.
    """
    if chosen := os.environ.get(variable):
        return _expanded(chosen, f"the environment variable {variable}", variable, error)
    if folder := os.environ.get(base):
        return Path(folder) / rest
    return _expanded(usual, f"where {variable} and {base} are not set, it", variable, error) / rest


def _expanded(text: str, what: str, variable: str, error: type[SteerKitError]) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as cause:
        raise error(
            f"{what} is {text!r:.300}, and its home folder can't be found ({cause})",
            expected="a path; ~ stands for the home folder of a user of this machine",
            fix=f"set {variable} to an absolute path",
        ) from cause
