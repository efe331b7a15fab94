"""Steering vectors of other libraries: read into steerkit's, and written back where the other format can say it.

One module per format; each states its layer convention and converts it to steerkit's (decoder blocks from 0, output
of the block). Formats are found through the entry-point group `steerkit.interop`, the built-in ones like those of
others:

    vector = interop.read("happy.gguf", "repeng", model=interop.ModelFacts.from_config("my-model"))
    interop.write(vector, "happy-again.gguf", "llamacpp")

Pickles are never executed, and what a file does not say is asked of the caller, not invented.
"""

from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, ForeignWriter
from steerkit_vectors_hub.interop.convert import read, write
from steerkit_vectors_hub.interop.facts import ModelFacts
from steerkit_vectors_hub.interop.registry import detect, format_names, get_format, is_pack, registered_formats

__all__ = [
    "Choice",
    "Foreign",
    "ForeignReader",
    "ForeignWriter",
    "ModelFacts",
    "detect",
    "format_names",
    "get_format",
    "is_pack",
    "read",
    "registered_formats",
    "write",
]
