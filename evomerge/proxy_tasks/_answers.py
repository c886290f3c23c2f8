"""What an answer is taken for when it is compared: its text, its words or its number."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Literal

Normalizer = Literal["none", "text", "number"]
Value = str | Fraction

_GROUPED = r"\d{1,3}(?:(?:,\d{3})+|(?:['’]\d{3})+)(?!\d)"
_UNSIGNED = rf"(?:{_GROUPED}|\d+)(?:\.\d+)?|(?<!\.)\.\d+"
# Not inside a word, a name such as x_1, or a version; "No.5" and "_5_" have numbers.
_BEFORE = r"(?<![^\W_])(?<![^\W_]_)(?<!\d\.)"
_NUMBER = re.compile(
    rf"{_BEFORE}(-?(?:{_UNSIGNED})(?:e[+-]?\d{{1,3}})?)(?:/(\d+))?", re.ASCII | re.IGNORECASE
)
_SEPARATOR = re.compile("[,'’]")
_CURRENCY = re.compile("[$€£¥]")


def extracted(text: str, pattern: str | None) -> str | None:
    """Return the last match of a regular expression, or its first group, without space around it.

    None where there is no match; without a pattern it is the text itself.
    """
    if not pattern:
        return text.strip()
    found = list(re.finditer(pattern, text))
    if not found:
        return None
    last = found[-1]
    return str(last[1] or "" if last.re.groups else last[0]).strip()


def normalized(text: str, by: Normalizer) -> Value | None:
    """Return what a text is compared as, None where it has no such value."""
    if by == "number":
        return last_number(text)
    return words(text) if by == "text" else text.strip()


def words(text: str) -> str:
    """Return a text in small letters without punctuation, one space between words.

    What a text begins with makes what this begins with, so an answer can be given up early.
    """
    kept = (one for one in text.casefold() if not unicodedata.category(one).startswith("P"))
    return " ".join("".join(kept).split())


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text, exactly: `1,234.50`, `-$3`, `.5`, `1e-3`, `3/4`.

    Groups of digits may be `1'000` too. A comma is never a decimal point and a space
    never inside a number: `5,00`, `1 000` and `3 1/2` are two numbers each.
    """
    plain = _CURRENCY.sub("", text.replace("\N{MINUS SIGN}", "-"))
    found = _NUMBER.findall(plain)
    if not found:
        return None
    number, denominator = found[-1]
    try:
        return Fraction(_SEPARATOR.sub("", number)) / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):  # beyond Python's limit of digits; x/0
        return None
