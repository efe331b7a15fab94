"""The model card of a pack: front matter that the Hugging Face hub understands, and what a reader must know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from steerkit._text import clean, one_line
from steerkit.vectors import Metric, PackMetadata
from steerkit_vectors_hub.plots import NormSeries, strength_curves

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


class _Made(str):
    """Text that was made here, and is put in as it is."""


def model_card(metadata: PackMetadata, norms: Sequence[NormSeries], *, repo_id: str, ref: str, sha256: str) -> str:
    """The whole README.md.

    Args:
        metadata: Of the pack.
        norms: Of its directions.
        repo_id: Where it will be published.
        ref: A reference to its newest version: the commit, which would pin this one, is not known before it is made.
        sha256: Digest of the pack.
    """
    markdown = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        finalize=lambda value: _line(value) if isinstance(value, str) and not isinstance(value, _Made) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    markdown.filters |= {"raw": _Made, "repr": repr, "number": lambda value, form: _Made(format(value, form))}
    curves = strength_curves(metadata.strength)
    values = [(each, {point[0]: point[1] for point in each.points}) for each in curves]
    measured = [(each, found.get(metadata.strength.recommended)) for each, found in values]
    return markdown.get_template("card.md").render(
        front_matter=_Made(_front_matter(metadata, repo_id)),
        name=repo_id.rpartition("/")[2],
        metadata=metadata,
        model=metadata.model,
        method=metadata.method,
        anchors=metadata.anchors,
        strength=metadata.strength,
        norms=norms,
        curves=curves,
        there=[f"{each.title} {each.worded(value)}" for each, value in measured if value is not None],
        ref=ref,
        sha256=sha256,
        plot_file=PLOT,
        curve_file=CURVE,
    )


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


def _line(text: str) -> str:
    """Text of unknown origin as one line of Markdown that is nothing but text, wherever on a line it stands.

    Markdown takes a backslash before any punctuation. Beyond what always marks something up, it goes before what does
    so at the beginning of a line (lists, rules, underlines of headings), and into what would become a link.
    """
    flat = " ".join(clean(text).split())
    escaped = _MARKUP.sub(r"\\\g<0>", flat)
    return _LINKED.sub(r"\g<0>\\", _AT_THE_START.sub(r"\g<1>\\\g<2>", escaped))
