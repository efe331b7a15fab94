"""The command line. This module alone is imported first, so that Ctrl-C is in hand before anything slow is."""

from __future__ import annotations

import sys

from steerkit.cli import interrupts


def main() -> None:
    """Entry point of the `steerkit` command: run it and exit with its code."""
    interrupts.end_at_once()
    from steerkit.cli.app import run

    code = run()
    interrupts.ignore()
    sys.exit(code)
