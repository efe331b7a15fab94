"""What a stranger writes never steers the terminal that it is shown on."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hub_support import vector

import steerkit as sk
from steerkit import errors
from steerkit._text import clean, one_line
from steerkit.analysis import Conflict
from steerkit.policy import Check, TrustWarning, enforce

EVIL = "a\x1b[2J\x1b]8;;http://x\x1b\\\x9b31m\rb\x85c\u202ed\u200be\u2028f\u2066g\ufeffh\x00i\U000e0041j\nerror: k"
"""Escape sequences of 7 and 8 bits, a link, an override, what has no width, and every kind of line break."""

IGNORABLE = [
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
]  # fmt: skip
"""Default_Ignorable_Code_Point of Unicode 16: what is not drawn at all."""

VISIBLE = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Format characters that are drawn: signs of Arabic, Syriac and Kaithi that stand with a number."""


def test_every_control_and_invisible_format_character_of_unicode_is_escaped() -> None:
    left = {
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and clean(f"a{char}") == f"a{char}"
    }
    drawn = {char for char in left if unicodedata.name(char, "").startswith("EGYPTIAN")}
    assert left - drawn == {"\t", "\n", *VISIBLE}
    assert left.isdisjoint(map(chr, range(32))) or left & set(map(chr, range(32))) == {"\t", "\n"}


def test_whatever_is_not_drawn_is_escaped() -> None:
    every = (chr(code) for first, last in IGNORABLE for code in range(first, last + 1))
    assert [f"{ord(char):x}" for char in every if clean(f"a{char}") == f"a{char}"] == []


def test_variations_spell_no_hidden_text() -> None:
    """Each byte of a text as one of the 256 selectors behind an emoji, as tools for hiding text do it."""
    hidden = "".join(chr(0xFE00 + byte if byte < 16 else 0xE0100 + byte - 16) for byte in b"ignore all rules")
    shown = clean(f"\U0001f600{hidden}")
    assert shown.count("\\") == len(hidden) - 1
    assert not set(hidden[1:]) & set(shown[2:])
    fillers = "".join(f"\u3164{char}" for char in hidden + "\u200d")
    assert clean(fillers).isascii(), "nor behind what is escaped itself"


@pytest.mark.parametrize(
    "text",
    [
        "plain text, with a tab\tand a line\n",
        "na\u00efve Gr\u00fc\u00dfe \u4f60\u597d",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f\u200d\U0001f525 1\ufe0f\u20e3 \u203c\ufe0f",
        "\u845b\U000e0100\u98fe \u182c\u180b",
        "",
    ],
    ids=["ascii", "accents", "persian", "devanagari", "emoji", "variants of characters", "empty"],
)
def test_text_of_any_language_is_left_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_a_joiner_without_a_script_that_needs_it_is_escaped() -> None:
    assert clean("pay\u200cpal.com \u200d") == r"pay\u200cpal.com \u200d"


def test_one_line_is_one_line() -> None:
    assert len(one_line(EVIL).splitlines()) == 1
    assert one_line(EVIL).isprintable()
    assert one_line(b"a\xff".decode(errors="surrogateescape")) == r"a\udcff"


@pytest.mark.parametrize(
    "kind", [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
)
def test_an_error_is_one_line_that_can_be_printed(kind: type[sk.SteerKitError]) -> None:
    error = kind(EVIL, expected=EVIL, fix=EVIL)
    for text in (str(error), error.problem, error.expected, error.fix):
        assert text is not None
        assert text.isprintable()
        assert r"\x1b]8;;http://x" in text


def test_the_reprs_of_what_comes_from_a_pack_can_be_printed() -> None:
    evil = vector(method={"name": EVIL[:200]})
    conflict = Conflict(0, 1, (EVIL, EVIL), 3, "resid_post", "opposing", -0.5)
    check = Check("identity", "fail", EVIL, fix=EVIL)
    for shown in (repr(evil), str(evil), str(conflict), repr(conflict), str(check), repr(check), repr(evil.metadata)):
        assert shown.isprintable()
        assert r"\x1b[2J" in shown


def test_a_warning_of_a_check_can_be_printed() -> None:
    with pytest.warns(TrustWarning) as caught:
        enforce([Check("identity", "fail", EVIL)], "warn", sk.SteerKitError)
    assert all(str(each.message).isprintable() for each in caught)
