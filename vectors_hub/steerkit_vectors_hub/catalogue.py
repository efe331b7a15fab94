"""The catalogue: one self-contained HTML page made from an index.

It loads nothing from anywhere: styles, script and charts are in the page, and its policy forbids it to ask for more.
Everything that a pack says of itself is text in it, never markup: what the template inserts is cleaned and escaped
unless it was made here. Without scripts the whole list is still there.
"""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote

from markupsafe import Markup

from steerkit._internal.sealed_page import sealed_page
from steerkit._text import clean
from steerkit_vectors_hub.index import Entry, Index
from steerkit_vectors_hub.plots import norms_svg

_PARTS = Path(__file__).parent / "page"


def page(index: Index) -> str:
    """The whole HTML page."""
    return sealed_page(
        _PARTS,
        "catalogue",
        index=index,
        models=sorted({entry.model.id or entry.model.architecture for entry in index.packs}),
        methods=sorted({entry.method for entry in index.packs}),
        metrics=sorted({metric.name for entry in index.packs for metric in entry.metrics}),
        quote=quote,
        names_of=_names,
        chart_of=lambda series: Markup(norms_svg(series)),
    )


def _names(entry: Entry) -> str:
    return json.dumps(sorted({clean(metric.name) for metric in entry.metrics}))
