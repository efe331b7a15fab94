"""The ids of a prompt without its images, from the ids alone.

Removing an image joins the text on both sides of it, so the ids around it can't simply be cut: they are tokenised
anew. No tokenizer undoes its own work exactly (Llama's puts a space in front of every text, WordPiece forgets line
breaks), so the text behind the ids is not taken from the decoder: it is a hypothesis, and one is used only if it has
exactly the given ids. Where several texts do, they must agree on the ids without the images, or the model's own chat
template must decide between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from steerkit.errors import EngineError, SteerKitError
from steerkit.models._architecture import Architecture
from steerkit.models._format import PromptFormat
from steerkit.models._processors import unshared
from steerkit.models._samples import Sample

_KEPT = (
    "the prompt {} writes an image or a video in another way than its processor writes a blank one",
    "a prompt as the model's own chat template and processor write it",
)

_MOST = 64
"""Texts that are followed at once; more would mean that the ids say nothing of the spaces around many images."""


_NONE = (
    "the tokenizer makes no text into the ids of the prompt {}",
    "ids that the model's own tokenizer has made of a text",
)
_SEVERAL = (
    "the ids of the prompt {} are those of several texts, which differ once their images are removed",
    "a prompt as the model's chat template writes it",
)

_MARK = "marker"
"""The text of a sample that is rendered to see where the template puts it."""

_UNKNOWN = ("", "\ua66e", "\u2042")
"""What an unknown token may have been: itself, a letter or a sign; which one it was, the ids do not say."""


@dataclass(frozen=True)
class _Side:
    """What the chat template writes on one side of an image.

    Attributes:
        space: White space.
        text: Whether the text of the sample comes next to it, and not something of the template's own.
        word: The template's own word next to it.
    """

    space: str
    text: bool
    word: str = ""

    def known(self, stripped: bool) -> bool:
        """Whether all white space on this side is the template's, or leaves a trace in the ids."""
        return not self.text or (bool(self.space) and not stripped)


@dataclass(frozen=True)
class _Written:
    """How the chat template writes an image, and whether it begins with the token that begins a text."""

    before: _Side
    after: _Side
    begins: bool


@dataclass
class _Row:
    """A row of ids as regular pieces between added tokens: `pieces[0] tokens[0] pieces[1] ... pieces[-1]`."""

    pieces: list[list[int]] = field(default_factory=lambda: [[]])
    tokens: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, ids: Sequence[int], added: frozenset[int]) -> _Row:
        row = cls()
        for token in ids:
            if token in added:
                row.tokens.append(token)
                row.pieces.append([])
            else:
                row.pieces[-1].append(token)
        return row


class TextView:
    """Takes the images out of rows of token ids.

    Args:
        format: The prompts of the model.
        architecture: The model's.
    """

    def __init__(self, format: PromptFormat, architecture: Architecture) -> None:
        if format.irregular:
            raise format.unequal
        self._architecture = architecture
        self._placeholder = format.placeholder
        self._tokenizer = unshared(format.tokenizer)
        self._visual = architecture.image_token_ids
        self._gone = self._visual | set(architecture.video_ends or ())
        self._strips: dict[int, Any] = self._tokenizer.added_tokens_decoder
        self._added = {token: str(text) for token, text in self._strips.items()}
        self._unknown = self._tokenizer.unk_token_id
        self._added.pop(self._unknown, None)  # seldom written; it mostly stands for what the vocabulary lacks
        self._written = _written(format)

    def without_images(self, ids: Sequence[int]) -> list[int]:
        """The ids that the prompt has without its images; those of a prompt without an image are as they are.

        Raises:
            EngineError: No text has these ids, or several that differ once their images are gone.
        """
        if self._architecture.audio_token_ids.intersection(ids):
            raise EngineError(
                "a vector measures the text of a prompt, and the prompt holds audio, which would be left out",
                expected="a prompt of text, images and videos",
                fix="use a dataset-level vector, which needs no such view",
            )
        if not self._visual.intersection(ids):
            return list(ids)
        if self._architecture.prepends_images:
            return [token for token in ids if token not in self._visual]
        short = [token for at, token in enumerate(ids) if not at or token not in self._visual or token != ids[at - 1]]
        found: dict[bool, set[tuple[int, ...]]] = {}
        for special in (False, True):
            texts = self._texts(short, special)
            views = {tuple(self._encode(re.sub(self._placeholder, "", text), special)) for text in texts}
            if any(self._gone.intersection(view) for view in views):
                raise self._refused(short, *_KEPT)
            if views:
                found[special] = views
        if len(found) > 1 and self._written is not None:
            found = {special: found[special] for special in (not self._written.begins,)}
        views = set().union(*found.values())
        if len(views) != 1:
            raise self._refused(short, *(_SEVERAL if views else _NONE))
        return list(views.pop())

    def _refused(self, short: Sequence[int], problem: str, expected: str) -> EngineError:
        return EngineError(
            problem.format(repr(self._decode(short)[-80:])),
            expected=expected,
            fix="answer samples: vlm.generate(samples); or use a dataset-level vector, which needs no such view",
        )

    def _texts(self, short: Sequence[int], special: bool) -> list[str]:
        """The texts that have these ids, where each image is one token.

        Args:
            short: The ids.
            special: Whether the tokenizer adds its special tokens, or the text has them written.
        """
        front, back = self._specials() if special else ((), ())
        if special and not (front or back):
            return []
        if tuple(short[: len(front)]) != front or tuple(short[len(short) - len(back) :]) != back:
            return []
        inner = short[len(front) : len(short) - len(back)]
        row = _Row.of(inner, frozenset(self._added))
        removed = self._removed(row)
        texts = [""]
        done: list[int] = [*front]
        for at, piece in enumerate(row.pieces):
            ends = at == len(row.tokens)
            done += [*piece, *([] if ends else row.tokens[at : at + 1])]
            token = "" if ends else self._added[row.tokens[at]]
            left = row.tokens[at - 1] if at - 1 in removed else None
            right = row.tokens[at] if at in removed else None
            kept: list[str] = []
            for text in texts:
                fits: list[str] = []
                for middle, sure in self._spellings(text, piece, left, right):
                    longer = text + middle + token
                    if longer not in fits and self._encode(longer, special) == [*done, *back]:
                        fits.append(longer)
                        if sure:
                            fits = [longer]
                            break
                kept += fits
            texts = kept
            if len(texts) > _MOST:
                raise self._refused(short, *_SEVERAL)
        return texts

    def _removed(self, row: _Row) -> set[int]:
        """Which of a row's tokens go with the images: image tokens and their delimiters."""
        text, spans = "", []
        for at, piece in enumerate(row.pieces):
            text += self._decode(piece) if piece else ""
            if at < len(row.tokens):
                spans.append((len(text), len(text) + len(self._added[row.tokens[at]])))
                text += self._added[row.tokens[at]]
        gone = [match.span() for match in re.finditer(self._placeholder, text)]
        return {
            at
            for at, (start, end) in enumerate(spans)
            if row.tokens[at] in self._visual or any(first <= start and end <= last for first, last in gone)
        }

    def _spellings(
        self, text: str, piece: Sequence[int], left: int | None, right: int | None
    ) -> Iterator[tuple[str, bool]]:
        """Texts that may have been this piece, those that the chat template would write first.

        Args:
            text: The text in front of it.
            piece: Its ids.
            left: The token in front of it, if that goes with an image.
            right: The token behind it, if that does.

        Yields:
            A text, and whether it is as the template writes it, so that no other need be looked at.
        """
        plain = list(dict.fromkeys(self._plain(piece)))
        if left is None and right is None:
            yield from ((spelling, True) for spelling in plain)
            return
        if left is not None and right is not None:  # between delimiters, or between two images
            written = "" if self._written is None else self._written.after.space
            yield from ((spelling, True) for spelling in dict.fromkeys(("", written)))
        elif self._written is not None:
            side = self._written.before if left is None else self._written.after
            strips = self._strips[right].lstrip if right is not None else self._strips[left].rstrip  # type: ignore[index]
            for spelling in plain:
                if left is None:
                    spelling = spelling.removesuffix(side.space) + side.space
                else:
                    spelling = side.space + (
                        spelling if spelling.startswith(side.space) else spelling.lstrip(" ")
                    ).removeprefix(side.space)
                front = text if right is None else text + spelling
                yield spelling, side.known(strips) and self._as_written(front)
        starts, ends = ("", " ", "\n") if left is not None else ("",), ("", " ", "\n") if right is not None else ("",)
        for start, spelling, end in product(starts, plain, ends):
            yield start + spelling + end, False

    def _as_written(self, text: str) -> bool:
        """Whether an image at the end of a text, or behind it, stands where the chat template would put one."""
        assert self._written is not None
        for match in reversed(list(re.finditer(self._placeholder, text))):
            if text[match.end() :].strip():
                break
            text = text[: match.start()]
        side, front = self._written.before, _squeezed(text.split())
        return side.text or (front.endswith(side.word) if side.word else not front)

    def _plain(self, piece: Sequence[int]) -> Iterator[str]:
        """What a piece may be, but for white space at its ends that leaves no trace in the ids."""
        if not piece:
            yield ""
            return
        raw = "".join(self._tokenizer.convert_ids_to_tokens(list(piece))).replace("▁", " ")
        raw = re.sub("(?:<0x[0-9A-F]{2}>)+", _bytes, raw)
        for text in (self._decode(piece), raw):
            for stand_in in _UNKNOWN if self._unknown in piece else ("",):
                known = text.replace(self._tokenizer.unk_token, stand_in) if stand_in else text
                yield known
                # some decoders take a space off each piece, some tokenizers put one in front of it
                if known.startswith(" "):
                    yield known[1:]
                yield " " + known

    def _specials(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer puts in front of a text and behind it."""
        bare, full = self._encode("x", False), self._encode("x", True)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start]), tuple(full[start + len(bare) :])
        return (), ()

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _squeezed(words: Sequence[str]) -> str:
    """Text without white space and case, which some tokenizers forget."""
    return "".join(words).casefold()


def _bytes(match: re.Match[str]) -> str:
    """The text of bytes that are tokens."""
    return bytes.fromhex(match.group().replace("<0x", "").replace(">", "")).decode(errors="replace")


def _written(format: PromptFormat) -> _Written | None:
    """How the model's own template writes an image; None where there is no template."""
    try:
        text = format.render(Sample(_MARK), 1)
    except SteerKitError:
        return None
    match = re.search(format.placeholder, text)
    if match is None:
        return None
    image = match.group()
    front = text[: match.start()] + image[: len(image) - len(image.lstrip())]
    back = image[len(image.rstrip()) :] + text[match.end() :]
    begin = format.tokenizer.bos_token
    return _Written(
        before=_Side(front[len(front.rstrip()) :], front.rstrip().endswith(_MARK), _squeezed(front.split()[-1:])),
        after=_Side(back[: len(back) - len(back.lstrip())], back.lstrip().startswith(_MARK)),
        begins=begin is not None and text.startswith(begin),
    )
