"""Pack format v1; docs/pack-format.md specifies it on one page."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from steerkit._internal.faults import about
from steerkit.errors import NonFiniteError
from steerkit.vectors.formats.container import RawPack, refused

SITES = ("resid_post", "mlp_out", "attn_out", "head_out")
OUTLIER = 1e4
MAX_LAYERS = 4096
MAX_WIDTH = 2**20
MAX_INTERVENTIONS = 1024

_SEAL = len(',"document_sha256":""}') + 64
"""Characters at the end of a document that hold its digest."""

_NAME = re.compile(r"directions\.(vision\.)?(0|[1-9][0-9]{0,4})\.([a-z_]{1,32})(?:\.([A-Za-z0-9_]{1,64}))?")


def tensor_name(layer: int, site: str, name: str = "", tower: str = "language") -> str:
    """`directions.{layer}.{site}[.{name}]`, and in the vision tower `directions.vision.{layer}.{site}[.{name}]`."""
    inside = "" if tower == "language" else f"{tower}."
    return f"directions.{inside}{layer}.{site}" + (f".{name}" if name else "")


def parse_tensor_name(full: str) -> tuple[int, str, str, str]:
    """`(layer, site, name, tower)`.

    Raises:
        PackFormatError: The name is not one of this format.
    """
    match = _NAME.fullmatch(full)
    if match is None or match[3] not in SITES or (match[1] and match[3] == "head_out") or int(match[2]) >= MAX_LAYERS:
        raise refused(
            f"a tensor is named {full[:80]!r}",
            expected="directions.[vision.]{layer}.{" + "|".join(SITES) + "}[.{name}], layer below "
            f"{MAX_LAYERS}, head_out not in the vision tower",
        )
    return int(match[2]), match[3], match[4] or "", "vision" if match[1] else "language"


def tensors_digest(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes | memoryview]]) -> str:
    """sha256 over every tensor in order of its name: name, type and shape as one JSON line, then the bytes."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        state.update(json.dumps([name, dtype, list(shape)], separators=(",", ":")).encode() + b"\n")
        state.update(data)
    return state.hexdigest()


def encode_document(document: Mapping[str, Any]) -> dict[str, str]:
    """The metadata block of the file; one key only, because safetensors writes several in random order.

    The digest of the document is the last thing in it, so that any reader can check it on the text as it stands.
    """
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return {"steerkit": f'{text[:-1]},"document_sha256":"{_text_digest(text)}"}}'}


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _check_document(raw: RawPack, name: str) -> None:
    """Compare the document with its digest, and take that out of it; documents without one are from other writers.

    Raises:
        PackFormatError: They do not agree.
    """
    if "document_sha256" not in raw.document:
        return
    digest = raw.document.pop("document_sha256")
    found = _text_digest(raw.text[:-_SEAL] + "}")
    if raw.text[-_SEAL:] != f',"document_sha256":"{digest}"}}' or digest != found:
        raise refused(
            f"{name}: the document has sha256 {found}",
            expected=f"{digest!r:.80} as it says itself, at its very end",
            fix="the document was changed after it was written: get the file again from its publisher, or change it "
            "with vector.with_metadata(...).save(...)",
        )


def audit(raw: RawPack, *, name: str) -> None:
    """Check the tensors against their names, their values and the digest in the document, and that against its own.

    Raises:
        PackFormatError: A name, a norm or a digest is wrong.
        NonFiniteError: A direction holds NaN or infinity.
    """
    norms: dict[str, float] = {}
    for key in raw.tensors:
        with about(name):
            parse_tensor_name(key)
        rows = raw.norms(key)
        if not np.isfinite(rows).all():
            raise NonFiniteError(
                f"{name}: {key} holds NaN or infinite values", expected="finite directions", fix="extract it again"
            )
        if not rows.all():
            raise refused(f"{name}: {key} is zero", expected="directions that do something")
        norms[key] = float(rows.max())
    if norms:
        middle = sorted(norms.values())[(len(norms) - 1) // 2]
        for key, norm in norms.items():
            if norm > OUTLIER * middle:
                raise refused(
                    f"{name}: {key} has norm {norm:.3g}",
                    expected=f"at most {OUTLIER:.0e} times the median of {middle:.3g}",
                    fix="a direction this large only breaks the model: don't use this file",
                )
    digest = tensors_digest({key: (info.dtype, info.shape, raw.view(key)) for key, info in raw.tensors.items()})
    if raw.document.get("tensors_sha256") != digest:
        raise refused(
            f"{name}: the tensors have sha256 {digest}",
            expected=f"{raw.document.get('tensors_sha256')!r:.80} as the document says",
            fix="the file was changed after it was written: get it again from its publisher",
        )
    _check_document(raw, name)
