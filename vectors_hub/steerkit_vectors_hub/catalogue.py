"""The catalogue: one self-contained HTML page made from an index.

It loads nothing from anywhere: styles, script and charts are in the page, and its policy forbids it to ask for more.
Everything that a pack says of itself is text in it, never markup. Without scripts the whole list is still there.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from shlex import quote

from steerkit._internal.text import clean
from steerkit_vectors_hub.index import Entry, Index
from steerkit_vectors_hub.norms import svg

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f7f8; --card: #fff; --ink: #1b2529; --soft: #56666d; --line: #d9e0e3; --accent: #12708c; --tint: #e3f0f4;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; line-height: 1.5;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #12181b; --card: #1a2226; --ink: #e4ebee; --soft: #9fb0b7; --line: #303c42;
  --accent: #5cb8d4; --tint: #1d3640;
} }
* { box-sizing: border-box; }
body { background: var(--page); color: var(--ink); margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.75rem; letter-spacing: -.01em; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
header p, #count { color: var(--soft); margin: .25rem 0 0; }
form {
  align-items: end; background: var(--card); border: 1px solid var(--line); border-radius: .75rem; display: grid;
  gap: .75rem; grid-template-columns: 2fr repeat(3, minmax(9rem, 1fr)) auto; margin: 1.25rem 0 1rem;
  padding: .9rem 1rem;
}
form[hidden], article[hidden] { display: none; }
label { color: var(--soft); display: block; font-size: .8rem; min-width: 0; }
input, select {
  background: var(--page); border: 1px solid var(--line); border-radius: .45rem; color: var(--ink); display: block;
  font: inherit; font-size: .95rem; height: 2.35rem; margin-top: .2rem; padding: 0 .6rem; width: 100%;
}
input[type=reset] { color: var(--accent); cursor: pointer; font-weight: 600; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#count { font-size: .9rem; margin: 0 0 .75rem .25rem; }
article {
  background: var(--card); border: 1px solid var(--line); border-radius: .75rem; display: grid; gap: .75rem 2rem;
  grid-template-columns: minmax(0, 1fr) minmax(0, 25rem); margin: 0 0 1rem; padding: 1.1rem 1.25rem 1.25rem;
}
article > * { min-width: 0; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
article p { margin: .35rem 0 0; overflow-wrap: anywhere; }
dl {
  display: grid; font-size: .9rem; gap: .2rem 1rem; grid-template-columns: max-content minmax(0, 1fr);
  margin: .75rem 0 0;
}
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code {
  background: var(--tint); border-radius: .35rem; font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: .82rem; overflow-wrap: anywhere; padding: .1rem .35rem; user-select: all;
}
.figures { grid-column: 1 / -1; overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th { border-bottom: 1px solid var(--line); color: var(--soft); font-weight: 600; }
th, td { padding: .35rem 1rem .35rem 0; text-align: left; vertical-align: top; }
td { min-width: 8rem; overflow-wrap: anywhere; } tr + tr td { border-top: 1px solid var(--line); }
.figures th:nth-child(2), .figures td:nth-child(2) { font-variant-numeric: tabular-nums; min-width: 4rem; }
figure { margin: 0 0 .5rem; }
figcaption { color: var(--soft); font-size: .8rem; text-align: center; }
svg { display: block; height: auto; max-width: 100%; width: 100%; }
svg text { fill: var(--soft); } svg line { stroke: var(--line); } svg rect { fill: var(--accent); }
svg rect:hover { fill: var(--ink); }
@media (max-width: 60rem) { form { grid-template-columns: 1fr 1fr; } form label:first-child { grid-column: 1 / -1; } }
@media (max-width: 46rem) {
  article { grid-template-columns: minmax(0, 1fr); } body { padding: 1rem .75rem 2rem; } h1 { font-size: 1.4rem; }
}
@media (max-width: 28rem) {
  form, dl { grid-template-columns: 1fr; } dt { margin-top: .3rem; }
}
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
    dated = f"<p>As of {_text(index.generated)}.</p>" if index.generated else ""
    number = len(index.packs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(index.title)}</title>
<style>{_STYLE}</style>
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
<script>{_SCRIPT}</script>
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
    captions = (f"<figcaption>Norm of {_text(each.title)} by layer</figcaption>" for each in entry.norms)
    return "".join(
        f"<figure>{svg(each)}{caption}</figure>" for each, caption in zip(entry.norms, captions, strict=True)
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
