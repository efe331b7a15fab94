"""Where the `steerkit` command begins: outside the package `steerkit`, whose files another distribution may replace."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; where it can't be imported, say whose the files are."""
    try:
        from steerkit.cli import main as command
    except Exception:
        from steerkit_vectors_hub.installation import report

        if report() == 0:  # the installation is sound, and the fault is elsewhere
            raise
        sys.exit(1)
    command()
