"""Steering vectors of other libraries: read into steerkit's, and written back where the other format can say it.

One module per format; each states its layer convention and converts it to steerkit's (decoder blocks from 0, output
of the block). Formats are found through the entry-point group `steerkit.interop`, the built-in ones like those of
others:

    vector = interop.read("happy.gguf", "repeng", model=interop.ModelFacts.from_config("my-model"))
    interop.write(vector, "happy-again.gguf", "llamacpp")

Pickles are never executed, and what a file does not say is asked of the caller, not invented.
"""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
