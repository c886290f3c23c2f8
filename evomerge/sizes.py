"""Sizes in bytes as people write them: 4GB, 500MB, 2GiB or a plain number."""

from __future__ import annotations

import re

from evomerge.errors import InputError, Place

_SIZE = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?\s*(?:([kmgt])(i?)b|b)?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str, option: str) -> int:
    """Return the bytes that an option's text such as 4GB or 2GiB says; InputError for others."""
    found = _SIZE.fullmatch(text.strip())
    if found:
        whole, fraction, unit, binary = found.groups()
        scale: int = (1024 if binary else 1000) ** _POWERS[unit.lower()] if unit else 1
        parts: int = 10 ** len(fraction or "")
        size = int(whole + (fraction or "")) * scale // parts
        if size > 0:
            return size
    place = Place("the command line", InputError, option)
    raise place.fail("a size such as 4GB, 500MB, 2GiB or 1000000", text)


def as_size(size: int) -> str:
    """Return a number of bytes in words, rounded: 4 GB, 1.5 MB, 300 bytes."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size} bytes"
