"""The catalogue: one self-contained HTML page made from an index.

It loads nothing from anywhere: styles, script and charts are in the page, and its policy forbids it to ask for more.
Everything that a pack says of itself is text in it, never markup. Without scripts the whole list is still there.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from shlex import quote

from steerkit._text import clean
from steerkit_vectors_hub.charts import svg
from steerkit_vectors_hub.index import Entry, Index
from steerkit_vectors_hub.norms import chart

_PARTS = Path(__file__).parent / "page"


def page(index: Index) -> str:
    """The whole HTML page."""
    models = sorted({_model(entry) for entry in index.packs})
    methods = sorted({entry.method for entry in index.packs})
    metrics = sorted({metric.name for entry in index.packs for metric in entry.metrics})
    style, script = (_PARTS.joinpath(f"catalogue.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    policy += "; base-uri 'none'; form-action 'none'"
    dated = f"<p>As of {_text(index.generated)}.</p>" if index.generated else ""
    number = len(index.packs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(index.title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{_text(index.title)}</h1>{dated}</header>
<main>
<form hidden aria-label="Filter the packs">
<label>Words <input type="search" name="text"></label>
{_choice("Model", "model", models)}
{_choice("Method", "method", methods)}
{_choice("Metric", "metric", metrics)}
<label>&nbsp;<input type="reset" value="Show all" aria-label="Show all packs"></label>
</form>
<p id="count" role="status">{number} {"pack" if number == 1 else "packs"}</p>
{"".join(map(_article, index.packs))}</main>
<script>{script}</script>
</body>
</html>
"""


def _article(entry: Entry) -> str:
    names = json.dumps(sorted({clean(metric.name) for metric in entry.metrics}))
    revision = f", revision {entry.model.revision}" if entry.model.revision else ""
    size = f"{entry.model.layer_count} layers of {entry.model.hidden_size}"
    facts = [
        ("Model", f"{_model(entry)}{revision} ({entry.model.architecture}, {size})"),
        ("Method", entry.method + (f" ({entry.paper})" if entry.paper else "")),
        ("Strength", f"{entry.strength:g}"),
        ("Licence", entry.license or "none stated"),
    ]
    if entry.authors:
        facts.append(("Authors", ", ".join(entry.authors)))
    if entry.created:
        facts.append(("Created", entry.created))
    terms = "".join(f"<dt>{_text(term)}</dt><dd>{_text(text)}</dd>" for term, text in facts)
    description = f"<p>{_text(entry.description)}</p>" if entry.description else ""
    return f"""<article data-model="{_text(_model(entry))}" data-method="{_text(entry.method)}" \
data-metrics="{_text(names)}">
<div>
<h2>{_text(entry.name)}</h2>
{description}<dl>{terms}<dt>Get it</dt><dd><code>steerkit pull {_text(quote(entry.ref))}</code></dd></dl>
</div>
<div>{_charts(entry)}</div>
<div class="figures" tabindex="0" role="region" aria-label="Figures of {_text(entry.name)}">{_metrics(entry)}</div>
</article>
"""


def _metrics(entry: Entry) -> str:
    if not entry.metrics:
        return "<p>No figures are stated.</p>"
    rows = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
        for cells in (
            (each.name, f"{each.value:g}", each.condition, each.judge, each.dataset) for each in entry.metrics
        )
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Figure", "Value", "Condition", "Judge", "Data set"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _charts(entry: Entry) -> str:
    if not entry.norms:
        return "<p>No stored directions: they are measured on each prompt.</p>"
    return "".join(
        f"<figure>{svg(chart(each), f'Norm of {each.title} by layer, {each.layers[0]} to {each.layers[-1]}')}"
        f"<figcaption>Norm of {_text(each.title)} by layer</figcaption></figure>"
        for each in entry.norms
    )


def _choice(label: str, name: str, values: list[str]) -> str:
    options = "".join(f'<option value="{_text(value)}">{_text(value)}</option>' for value in values)
    return f'<label>{label} <select name="{name}"><option value="">any</option>{options}</select></label>'


def _model(entry: Entry) -> str:
    return entry.model.id or entry.model.architecture


def _text(value: str) -> str:
    """Text of unknown origin as HTML that is nothing but text."""
    return html.escape(clean(value))


def _hash(text: str) -> str:
    """How a content security policy names a script or a style that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
