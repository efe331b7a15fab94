"""The version, and the versions of vLLM that it was tested with."""

from __future__ import annotations

__version__ = "0.1.0"

VLLM = ("0.32",)
"""Minor versions of vLLM whose internals are known: they are private, and change from one to the next."""
