"""Where packs come from over a network: one module per kind of source."""

from __future__ import annotations

from steerkit_vectors_hub.refs import Kind
from steerkit_vectors_hub.sources.base import Source, Target


def source_of(kind: Kind, token: bool | str | None = None) -> Source:
    """The source that serves a kind of reference; its libraries are imported only now.

    Args:
        kind: The kind.
        token: For the Hugging Face hub; default: that of `hf auth login` or HF_TOKEN.
    """
    if kind == "hf":
        from steerkit_vectors_hub.sources.huggingface import HuggingFaceSource

        return HuggingFaceSource(token)
    if kind == "web":
        from steerkit_vectors_hub.sources.web import WebSource

        return WebSource()
    from steerkit_vectors_hub.sources.filesystem import FilesystemSource

    return FilesystemSource()


__all__ = ["Source", "Target", "source_of"]
