"""What was found, as plain values and as tables of CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

SHARES = ("unsafe", "not_safe", "refused", "over_refusal", "garbled", "utility", "truncated")
"""The shares of an `Outcome` that tables hold."""


def as_plain(found: Any) -> dict[str, Any]:
    """A dataclass as plain values; None for what is NaN, for which JSON has no word."""
    return json.loads(json.dumps(asdict(found)), parse_constant=lambda _: None)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; a figure takes a column each for its value, the ends of its interval, and the numbers it is of."""
    flat = []
    for row in rows:
        kept: dict[str, Any] = {}
        for name, value in row.items():
            parts = value if isinstance(value, dict) and "value" not in value else {name: value}
            for part, each in parts.items():
                ends = (
                    {f"{part}_{end}".removesuffix("_value"): it for end, it in each.items()}
                    if isinstance(each, dict)
                    else {part: each}
                )
                kept |= {key: "" if it != it else it for key, it in ends.items()}
        flat.append(kept)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
