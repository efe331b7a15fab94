"""What an intervention reaches, as sets: kinds of tokens, layers, a site and a tower.

Every token of a prompt or an answer is of one `Kind`. A selector means a set of kinds, so whether two interventions can
meet on a token is whether two sets intersect, and the same sets answer what a dose adds up to, what conflicts, and what
has to be screened together. What is counted within a prompt (positions, rows) can only rule a meeting out where that
holds for every prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

Site: TypeAlias = Literal["resid_post", "mlp_out", "attn_out", "head_out"]
"""Where in a layer: the output of the block, of its MLP, or of its attention; or `head_out`, the attention heads side
by side, which is the input of the projection at the end of the attention."""

Tower: TypeAlias = Literal["language", "vision"]
"""The decoder, or the tower that turns an image into features."""

Tokens: TypeAlias = Literal["last", "all", "image", "video", "audio", "text", "system", "after_image", "generated"]
"""Which tokens, by meaning.

`last` is the last real token of the prompt and, in the generation phase, the newest token. `all` is every real token.
`system`, `image` (whatever is visual: images and videos), `video` (of these, the videos), `audio`, `text` (none of
all these) and `after_image` (what stands behind the last image or video) are tokens of the prompt. `generated` are the
tokens after the prompt. Padding is never selected.

In the vision tower, `all` is every token, class tokens included, and `image` the patches alone; there are no others.
"""

OF_CONTENT: frozenset[Tokens] = frozenset({"image", "video", "audio", "text", "system", "after_image"})
"""Those that are told by what a prompt holds."""

VISUAL: frozenset[Tokens] = frozenset({"image", "video", "after_image"})
"""Those that a prompt without anything visual has none of."""

Phase: TypeAlias = Literal["prompt", "generation", "both"]

Prompts: TypeAlias = Literal["all", "with_image", "without_image"]
"""Which prompts, with their answers: those that hold something visual, those that hold text alone, or all."""

Span: TypeAlias = tuple[int, int | None]
"""`[start, stop)` of numbers; None: without an end."""

Positions: TypeAlias = tuple[int | Span, ...]
"""Numbers, and ranges of numbers, of the tokens that `tokens` and `phase` mean in a row, counted from 0.

Negative numbers count back from the end of the prompt, which is -1 for its last token. In a range, None as the stop is
the end of the sequence, answer included.
"""


class Selector(NamedTuple):
    """Which tokens of a call an intervention changes.

    Attributes:
        tokens: Which by meaning.
        phase: In which phase.
        prompts: Of which prompts.
        positions: Which of these by number; None: all.
        rows: For each prompt of the batch whether it is one; None: all.
        steps: Which generated tokens, counted from 0; None: all.
    """

    tokens: Tokens = "last"
    phase: Phase = "both"
    prompts: Prompts = "all"
    positions: Positions | None = None
    rows: tuple[bool, ...] | None = None
    steps: tuple[Span, ...] | None = None

    @property
    def reaches_prompts(self) -> bool:
        """Whether it means tokens of prompts."""
        if self.phase == "generation" or self.tokens == "generated":
            return False
        # a prompt has one last token
        return self.tokens != "last" or self.positions is None or _overlap(_spans(self.positions), ((0, 1), (-1, 0)))

    @property
    def answers(self) -> tuple[Span, ...]:
        """The generated tokens that it may mean, counted from 0; none for a selector of prompt tokens."""
        if self.phase == "prompt" or self.tokens not in ("last", "all", "generated"):
            return ()
        return _intersection(self._numbered, self.steps or ((0, None),))

    @property
    def _numbered(self) -> tuple[Span, ...]:
        if self.positions is None:
            return ((0, None),)
        if self.tokens == "generated" or self.phase == "generation":
            return _spans(self.positions)
        # the tokens of the prompt come first: one of `last`, and of `all` at least one
        found = []
        for start, stop in _spans(self.positions):
            if stop is not None and stop <= 1:
                continue
            first = start - 1 if self.tokens == "last" and start > 0 else 0
            found.append((first, None if stop is None else stop - 1))
        return tuple(found)

    def answers_at(self, step: int) -> bool | None:
        """Whether it means this generated token of every row; None: that depends on the row's prompt."""
        if not _overlap(self.answers, ((step, step + 1),)):
            return False
        return None if self.positions is not None and (self.tokens, self.phase) == ("all", "both") else True

    @property
    def counts(self) -> bool:
        """Whether it depends on the number of a token, not on its meaning alone."""
        return self.positions is not None or self.steps is not None

    @property
    def counts_answers(self) -> bool:
        """Whether it must know which generated token one is."""
        return self.counts and bool(self.answers)


class Kind(NamedTuple):
    """A kind of token, as far as any selector can tell.

    Attributes:
        role: What it is; `class` and `patch` are tokens of the vision tower.
        behind: Whether it stands behind the last image or video of its prompt.
        last: Whether it is the last of its prompt.
        pictured: Whether its prompt holds an image or a video.
    """

    role: Literal["system", "text", "audio", "image", "video", "answer", "class", "patch"]
    behind: bool
    last: bool
    pictured: bool


_UNSEEN: tuple[Literal["system", "text", "audio"], ...] = ("system", "text", "audio")
_SEEN: tuple[Literal["image", "video"], ...] = ("image", "video")


def _kinds() -> Iterator[Kind]:
    for pictured, role, behind, last in product((False, True), _UNSEEN, (False, True), (False, True)):
        # without an image nothing is behind one; with one, the last token is, unless it is of the image itself
        if (pictured or not behind) and (behind or not last or not pictured):
            yield Kind(role, behind, last, pictured)
    for role, last in product(_SEEN, (False, True)):
        yield Kind(role, False, last, True)
    for pictured in (False, True):
        yield Kind("answer", False, False, pictured)


KINDS = frozenset(_kinds())
"""Every kind of token that a decoder reads."""

VISION_KINDS = frozenset({Kind("class", False, False, True), Kind("patch", False, False, True)})
"""Every kind of token of a vision tower."""


class Token(NamedTuple):
    """A kind of token, and of an answer which one from 0."""

    kind: Kind
    step: int | None = None


@dataclass(frozen=True)
class Reach:
    """What an intervention reaches.

    Attributes:
        kinds: Kinds of tokens.
        selector: The selector that means them.
        layers: 0-based blocks; None: every one for which there is a direction.
        site: Where in the block.
        tower: In which tower.
    """

    kinds: frozenset[Kind]
    selector: Selector
    layers: frozenset[int] | None
    site: Site
    tower: Tower

    @property
    def pictured(self) -> frozenset[bool]:
        """Whether it reaches prompts with an image (True), without one (False), or both."""
        return frozenset(kind.pictured for kind in self.kinds)

    def includes(self, token: Token) -> bool:
        """Whether it may reach such a token: False only where it reaches none of that kind, or not at that step."""
        if token.kind not in self.kinds:
            return False
        return token.step is None or _overlap(self.selector.answers, ((token.step, token.step + 1),))

    def shares_tokens(self, other: Reach) -> bool:
        """Whether there can be a token that both reach, be it at different places of the model."""
        mine, theirs = self.selector, other.selector
        shared = self.kinds & other.kinds
        if mine.rows is not None and theirs.rows is not None:
            same = len(mine.rows) == len(theirs.rows)  # a call has one number of prompts
            if not same or not any(both for both in zip(mine.rows, theirs.rows, strict=True) if all(both)):
                return False
        roles = {kind.role == "answer" for kind in shared}
        numbers = _may_share(mine, theirs)
        # with the same tokens and phase, numbers mean the same in answers as well
        alike = numbers or mine.phase != theirs.phase
        return (False in roles and numbers) or (True in roles and alike and _overlap(mine.answers, theirs.answers))

    def meets(self, other: Reach) -> bool:
        """Whether there can be a token that both change at one and the same place."""
        layers = self.layers is None or other.layers is None or bool(self.layers & other.layers)
        return layers and (self.site, self.tower) == (other.site, other.tower) and self.shares_tokens(other)


def reach(selector: Selector, layers: Iterable[int] | None, site: Site, tower: Tower) -> Reach:
    """What a selector reaches at places of a model."""
    return Reach(_meant(selector, tower), selector, None if layers is None else frozenset(layers), site, tower)


def representatives(reaches: Iterable[Reach]) -> list[Token]:
    """One token for every way in which tokens differ to these interventions: what acts on it is constant within."""
    given = list(reaches)
    starts = {0, *(number for each in given for span in each.selector.answers for number in span if number is not None)}
    return [
        Token(kind, step)
        for kind in sorted(KINDS | VISION_KINDS)
        for step in (sorted(starts) if kind.role == "answer" else (None,))
        if any(each.includes(Token(kind, step)) for each in given)
    ]


@lru_cache
def _meant(selector: Selector, tower: Tower) -> frozenset[Kind]:
    return frozenset(kind for kind in (KINDS if tower == "language" else VISION_KINDS) if _means(selector, kind))


def _means(selector: Selector, kind: Kind) -> bool:
    if selector.prompts != "all" and kind.pictured != (selector.prompts == "with_image"):
        return False
    if kind.role in ("class", "patch"):
        return selector.phase != "generation" and (
            selector.tokens == "all" or (selector.tokens == "image" and kind.role == "patch")
        )
    if kind.role == "answer":
        return bool(selector.answers)
    if not selector.reaches_prompts:
        return False
    if selector.tokens == "after_image":
        return kind.behind
    if selector.tokens == "image":
        return kind.role in _SEEN
    return selector.tokens == "all" or (kind.last if selector.tokens == "last" else kind.role == selector.tokens)


def _may_share(one: Selector, other: Selector) -> bool:
    """Whether the numbers leave a token of some prompt to both."""
    if one.positions is None or other.positions is None or one.tokens != other.tokens:
        return True  # numbers of different tokens can't be compared
    return any(
        _counted_from(mine) != _counted_from(theirs) or _counted_from(mine) == "both" or _overlap((mine,), (theirs,))
        for mine, theirs in product(_spans(one.positions), _spans(other.positions))
    )


def _counted_from(span: Span) -> Literal["front", "end", "both"]:
    start, stop = span
    if start >= 0 and (stop is None or stop > 0):
        return "front"
    return "end" if start < 0 and stop is not None and stop <= 0 else "both"


def _spans(positions: Positions) -> tuple[Span, ...]:
    """Single numbers as ranges, too; that of -1 ends at 0."""
    return tuple((each, each + 1) if isinstance(each, int) else each for each in positions)


def _overlap(one: Iterable[Span], other: Iterable[Span]) -> bool:
    return bool(_intersection(one, other))


def _intersection(one: Iterable[Span], other: Iterable[Span]) -> tuple[Span, ...]:
    found = []
    for (a, b), (c, d) in product(tuple(one), tuple(other)):
        start, stop = max(a, c), min(math.inf if b is None else b, math.inf if d is None else d)
        if start < stop:
            found.append((start, None if stop == math.inf else int(stop)))
    return tuple(found)
