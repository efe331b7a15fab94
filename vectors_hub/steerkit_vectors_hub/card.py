"""The model card of a pack: front matter that the Hugging Face hub understands, and what a reader must know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from steerkit._text import clean, one_line
from steerkit.vectors import Metric, PackMetadata, StrengthRecord
from steerkit_vectors_hub.norms import NormSeries
from steerkit_vectors_hub.strength import strength_series

PLOT = "norms.png"
CURVE = "strength.png"

LICENSES = frozenset(
    "apache-2.0 mit bsd-2-clause bsd-3-clause bsl-1.0 cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-4.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 isc unlicense wtfpl openrail llama2 llama3 "
    "llama3.1 llama3.2 llama3.3 gemma".split()
)
"""Licences by the identifier that the hub gives them; it calls any other `other`, with a name."""

_MARKUP = re.compile(r"[\\`*_\[\]<>|#!&~$@]")
_AT_THE_START = re.compile(r"^([0-9]*)([-+=:.)])")
_LINKED = re.compile(r"\b(?:https?|ftp|mailto|xmpp|www)(?=[:.])", re.IGNORECASE)
_TASK = "image-text-to-text"


def model_card(metadata: PackMetadata, norms: Sequence[NormSeries], *, repo_id: str, ref: str, sha256: str) -> str:
    """The whole README.md.

    Args:
        metadata: Of the pack.
        norms: Of its directions.
        repo_id: Where it will be published.
        ref: A reference to its newest version: the commit, which would pin this one, is not known before it is made.
        sha256: Digest of the pack.
    """
    body = [
        f"# {_line(repo_id.rpartition('/')[2])}",
        _what(metadata),
        "## Use",
        _use(metadata, ref, sha256),
        "## How it was made",
        _made(metadata),
        "## What was measured",
        _measured(metadata.metrics),
        *_by_strength(metadata.strength),
        "## Directions",
        _directions(norms),
        "## Intended use",
        _INTENDED,
        "## Limits",
        _LIMITS,
    ]
    return f"---\n{_front_matter(metadata, repo_id)}---\n\n" + "\n\n".join(body) + "\n"


_INTENDED = """\
Research on, and mitigation of, the loss of safety alignment that an image causes in a vision-language model. The vector
is meant for the base model named above, at the revision named above, and for no other."""

_LIMITS = """\
- Steering is a mitigation, not a guarantee: a steered model may still answer a harmful request, and may refuse a
  harmless one. Measure the unsafe rate, over-refusal and utility together, on your own prompts, before you rely on it.
- The figures above are those of its makers, on their prompts and with their judge.
- The same arithmetic can remove refusals: a negative strength reverses the effect. A pack holds no code, but one from a
  stranger can make a model worse. Pin the digest."""


def _front_matter(metadata: PackMetadata, repo_id: str) -> str:
    license_ = (metadata.license or "").strip()
    known = license_.lower() in LICENSES
    tags = ["steerkit", "steering-vector", "activation-steering", one_line(metadata.method.name)]
    extra: dict[str, Any] = {} if known else {"license_name": re.sub(r"[^a-z0-9.]+", "-", license_.lower()).strip("-")}
    data = ModelCardData(
        base_model=metadata.model.id,
        base_model_relation="adapter",
        library_name="steerkit",
        license=license_.lower() if known else "other",
        model_name=repo_id.rpartition("/")[2],
        pipeline_tag=_TASK,
        tags=tags,
        eval_results=[_result(metric) for metric in metadata.metrics] or None,
        **extra,
    )
    return data.to_yaml() + "\n"


def _result(metric: Metric) -> EvalResult:
    dataset, name = one_line(metric.dataset).strip() or "not named", one_line(metric.name)
    condition = one_line(metric.condition)
    return EvalResult(
        task_type=_TASK,
        dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "custom",
        dataset_name=dataset,
        metric_type=re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "metric",
        metric_name=f"{name}, {condition}" if condition else name,
        metric_value=metric.value,
    )


def _what(metadata: PackMetadata) -> str:
    about = _line(metadata.description) if metadata.description.strip() else "A steering vector."
    authors = f" By {', '.join(map(_line, metadata.authors))}." if metadata.authors else ""
    base = f"[{_line(metadata.model.id)}](https://huggingface.co/{metadata.model.id})"
    return f"{about}{authors}\n\nA steerkit pack for {base}: it changes hidden states while a model runs, no weights."


def _use(metadata: PackMetadata, ref: str, sha256: str) -> str:
    return f"""```python
import steerkit as sk

vlm = sk.load("{metadata.model.id}", revision="{metadata.model.revision}")
vector = sk.load_vector("{ref}")
with sk.steer(vlm, vector, strength={metadata.strength.recommended:g}):
    answers = vlm.generate(sk.read_samples("prompts.jsonl"))
print(vector.source)  # with commit and digest
```

That loads the newest version. What it prints leads to exactly the one that was loaded, for ever: put it in the place of
`{ref}` once you have tried it. The sha256 of the version that this card belongs to is
`{sha256}`."""


def _made(metadata: PackMetadata) -> str:
    anchors, model, strength = metadata.anchors, metadata.model, metadata.strength
    span = "" if strength.minimum is None or strength.maximum is None else f", {strength.minimum} to {strength.maximum}"
    rows = [
        ("method", metadata.method.name + (f" ({metadata.method.paper})" if metadata.method.paper else "")),
        ("options", ", ".join(f"{key}={value!r}" for key, value in metadata.method.config.items()) or "none"),
        ("base model", f"{model.id}, revision {model.revision}, {model.architecture}"),
        ("size", f"{model.layer_count} layers of {model.hidden_size}, {metadata.dtype}"),
        ("strength", f"{strength.recommended}{span}"),
        ("licence", str(metadata.license)),
    ]
    if anchors is None:
        rows.append(("anchors", "none: it is measured on each prompt"))
    else:
        licensed = f", licence {anchors.license}" if anchors.license else ""
        rows.append(("anchors", f"{anchors.name}: {anchors.size} samples{licensed}, sha256 {anchors.sha256}"))
    rows += [("changed since", step) for step in metadata.history]
    if metadata.versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in sorted(metadata.versions.items()))))
    return _table(("", ""), rows)


def _measured(metrics: Sequence[Metric]) -> str:
    if not metrics:
        return "Nothing. Measure it before you use it."
    rows = [(each.name, f"{each.value:g}", each.condition, each.judge, each.dataset) for each in metrics]
    return _table(("figure", "value", "condition", "judge", "data set"), rows)


def _by_strength(record: StrengthRecord) -> list[str]:
    """The section about the strength; nothing where no calibration measured the vector at several."""
    series = strength_series(record)
    if not series:
        return []
    measured = [(each, dict(each.points).get(record.recommended)) for each in series]
    there = [f"{each.title} {each.shown(value)}" for each, value in measured if value is not None]
    text = f"The recommended strength is {record.recommended:.4g}"
    text += f": {_line(', '.join(there))}." if there else "; it was not measured there."
    if record.chosen_by.strip():
        text += f" How it was chosen: {_line(record.chosen_by).rstrip('.')}."
    return [
        "## Strength",
        f"![{_line(' and '.join(each.title for each in series))} by strength]({CURVE})",
        f"{text} These are figures on the prompts by which the strength was chosen; on others, expect worse.",
    ]


def _directions(norms: Sequence[NormSeries]) -> str:
    if not norms:
        return "None are stored: they are measured on each prompt."
    spans = "; ".join(
        f"{each.title}: {len(each.layers)} layers, norms {min(each.norms):.3g} to {max(each.norms):.3g}"
        for each in norms
    )
    return f"![Norm of the directions by layer]({PLOT})\n\n{_line(spans)}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_line(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _line(text: str) -> str:
    """Text of unknown origin as one line of Markdown that is nothing but text, wherever on a line it stands.

    Markdown takes a backslash before any punctuation. Beyond what always marks something up, it goes before what does
    so at the beginning of a line (lists, rules, underlines of headings), and into what would become a link.
    """
    flat = " ".join(clean(text).split())
    escaped = _MARKUP.sub(r"\\\g<0>", flat)
    return _LINKED.sub(r"\g<0>\\", _AT_THE_START.sub(r"\g<1>\\\g<2>", escaped))
