"""The catalogue: one self-contained HTML page made from an index.

It loads nothing from anywhere: styles, script and charts are in the page, and its policy forbids it to ask for more.
Everything that a pack says of itself is text in it, never markup. Without scripts the whole list is still there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from shlex import quote

from steerkit_vectors_hub.index import Entry, Index
from steerkit_vectors_hub.norms import svg

_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.45; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; }
form { display: flex; flex-wrap: wrap; gap: .75rem 1.25rem; margin: 1rem 0; }
label { display: flex; flex-direction: column; font-size: .875rem; }
input, select { font: inherit; padding: .25rem .4rem; min-width: 12rem; max-width: 22rem; }
article { border: 1px solid #8888; border-radius: .5rem; margin: 0 0 1rem; padding: .75rem 1rem; }
article[hidden] { display: none; }
h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .75rem; margin: .5rem 0; }
dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { border-bottom: 1px solid #8886; padding: .15rem .6rem .15rem 0; text-align: left; overflow-wrap: anywhere; }
figure { display: inline-block; margin: .25rem 1.5rem .25rem 0; }
figcaption { font-size: .8rem; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; } svg g { fill: #2a8fb0; }
code { overflow-wrap: anywhere; }
"""

_SCRIPT = """
"use strict";
const form = document.querySelector("form");
const packs = [...document.querySelectorAll("article")];
const count = document.getElementById("count");
function show() {
  const words = form.text.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const metric = form.metric.value;
  let shown = 0;
  for (const pack of packs) {
    const text = pack.textContent.toLowerCase();
    pack.hidden = !(words.every((word) => text.includes(word))
      && (!form.model.value || pack.dataset.model === form.model.value)
      && (!form.method.value || pack.dataset.method === form.method.value)
      && (!metric || JSON.parse(pack.dataset.metrics).includes(metric)));
    shown += pack.hidden ? 0 : 1;
  }
  count.textContent = shown + " of " + packs.length + (packs.length === 1 ? " pack" : " packs");
}
form.addEventListener("input", show);
form.addEventListener("reset", () => setTimeout(show));
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
show();
"""


def page(index: Index) -> str:
    """The whole HTML page."""
    models = sorted({_model(entry) for entry in index.packs})
    methods = sorted({entry.method for entry in index.packs})
    metrics = sorted({metric.name for entry in index.packs for metric in entry.metrics})
    policy = f"default-src 'none'; style-src '{_hash(_STYLE)}'; script-src '{_hash(_SCRIPT)}'"
    policy += "; base-uri 'none'; form-action 'none'"
    dated = f"<p>As of {escape(index.generated)}.</p>" if index.generated else ""
    number = len(index.packs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=True)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(index.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(index.title)}</h1>{dated}</header>
<main>
<form hidden aria-label="Filter the packs">
<label>Words <input type="search" name="text"></label>
{_choice("Model", "model", models)}
{_choice("Method", "method", methods)}
{_choice("Metric", "metric", metrics)}
<label>&nbsp;<input type="reset" value="Show all"></label>
</form>
<p id="count" role="status">{number} {"pack" if number == 1 else "packs"}</p>
{"".join(map(_article, index.packs))}</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _article(entry: Entry) -> str:
    names = json.dumps(sorted({metric.name for metric in entry.metrics}))
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
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in facts)
    description = f"<p>{escape(entry.description)}</p>" if entry.description else ""
    return f"""<article data-model="{escape(_model(entry))}" data-method="{escape(entry.method)}" \
data-metrics="{escape(names)}">
<h2>{escape(entry.name)}</h2>
{description}<dl>{terms}<dt>Load</dt><dd><code>steerkit pull {escape(quote(entry.ref))}</code></dd></dl>
{_metrics(entry)}{_charts(entry)}</article>
"""


def _metrics(entry: Entry) -> str:
    if not entry.metrics:
        return "<p>No figures are stated.</p>"
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in (
            (each.name, f"{each.value:g}", each.condition, each.judge, each.dataset) for each in entry.metrics
        )
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Figure", "Value", "Condition", "Judge", "Data set"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _charts(entry: Entry) -> str:
    if not entry.norms:
        return "<p>No stored directions: they are measured on each prompt.</p>"
    captions = (f"<figcaption>Norm of {escape(each.title)} by layer</figcaption>" for each in entry.norms)
    return "".join(
        f"<figure>{svg(each)}{caption}</figure>" for each, caption in zip(entry.norms, captions, strict=True)
    )


def _choice(label: str, name: str, values: list[str]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
    return f'<label>{label} <select name="{name}"><option value="">any</option>{options}</select></label>'


def _model(entry: Entry) -> str:
    return entry.model.id or entry.model.architecture


def _hash(text: str) -> str:
    """How a content security policy names a script or a style that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
