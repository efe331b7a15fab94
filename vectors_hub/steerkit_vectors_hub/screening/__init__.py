"""Screening: what a pack does to a model's refusals, seen on canaries.

Canaries are a small set of harmful and harmless requests, with and without images. The user's own model answers them
with and without the pack, and what changed is counted: refusals of harmful requests that were lost, harmless requests
that are refused now, answers that were spoiled. A second line of evidence needs no answers: whether a pack's directions
point away from the model's own refusal direction.

    checks = screen(vlm, vector)                       # what `steerkit verify` reports
    screener = Screener(vlm, "my-canaries.json")       # answers without a pack are kept from one vector to the next
    print(screener.screen(vector, strength=0.5))

`canaries` are data; `trials` says at which strengths, in which ways and on which tokens a pack is tried; `counts` reads
answers beside those without the pack and counts what changed; `directions` compares directions; `findings` turns all of
it into checks; `screener` runs the model.
"""

from steerkit._internal.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
