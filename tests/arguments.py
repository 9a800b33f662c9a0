"""What the scripts of the tests take on their command line, and refuse before they begin."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection


def whole(least: int = 1) -> Callable[[str], int]:
    """The type of a whole number that is not below *least*."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise ArgumentTypeError(f"{text} is too little: it must be {least} or more")
        return number

    return read


def above_zero(text: str) -> float:
    """The type of a number such as minutes: above 0, and finite."""
    try:
        number = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text} is out of range: it must be above 0, and finite")
    return number


def names(what: str, known: Collection[str]) -> Callable[[str], list[str]]:
    """The type of a list with commas, of names that are *known*; each is taken once."""

    def read(text: str) -> list[str]:
        chosen = list(dict.fromkeys(text.split(",")))
        if "" in chosen:
            raise ArgumentTypeError(f"{text!r} has an empty name in it")
        if unknown := [each for each in chosen if each not in known]:
            raise ArgumentTypeError(
                f"no {what} is named {', '.join(unknown)}; there are {', '.join(known)}"
            )
        return chosen

    return read
