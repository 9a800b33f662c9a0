"""What is stored was written by others: nothing of it may act on a terminal, or show a secret."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final, cast

MASK: Final = "***"

# controls, formats (bidi marks among them), surrogates, private and unassigned, odd line ends
_UNSAFE: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))

_SECRET_NAME: Final = re.compile(
    r"password|passwd|passphrase|passcode|pass$|secret|token|jwt|bearer|api_?key"
    r"|access_?key|private_?key|credential|authorization|^auth$|cookie|session_?(?:id|key)"
    r"|signature|^pin(?:_?code)?$|^cvv|^cvc|^otp$|^ssn$|^pwd?$|card_?number|credit_?card",
    re.IGNORECASE,
)
_QUOTED: Final = r"""\\+"[^"\\]*\\+" | b?"(?:[^"\\]|\\.)*" | b?'(?:[^'\\]|\\.)*'"""
# none of these may look at one part of a long text again and again
_SECRET_TEXT: Final = (
    (re.compile(r"(?<=://)(?:[^\s/@:]*:[^\s/]*|[^\s/@]{16,})(?=@)"), MASK),
    (
        re.compile(r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)[\s\S]*?(?:(?=-----END)|\Z)"),
        rf"\1{MASK}",
    ),
    (
        re.compile(rf"""(?ix) (cookie \\* ["']? \s* [=:] \s*) (?: {_QUOTED} | [^\r\n]+ )"""),
        rf"\1{MASK}",
    ),
    (
        re.compile(
            rf"""(?ix)
            (
                (?: password | passwd | passphrase | passcode | secret | token | api[_-]?key
                | (?:access|private|secret)[_-]?key | authorization | credentials? | signature
                | (?<![a-z]) (?: pwd | pin | cvv | otp | ssn) | [?&]sig )
                \\* ["']? \s* [=:] \s*
            )
            (?: (?: bearer | basic | digest | negotiate | token ) \s+ )?
            (?: {_QUOTED} | b?\\*["']?[^\s,;&)"'}}]+ )
            """
        ),
        rf"\1{MASK}",
    ),
    (
        re.compile(
            r"(?i)(--(?:[a-z]{1,20}-)?(?:password|passwd|secret|token|api-?key)\s+)[^\s-]\S*"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{MASK}"),
)


def clean(text: str, *, lines: bool = False) -> str:
    r"""Text that only shows: what would act on a terminal is escaped, `\x1b` and the like.

    Args:
        lines: Let line ends and tabs stand.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each if _is_safe(each) or (lines and each in "\n\t") else _escaped(each) for each in text
    )


def _is_safe(character: str) -> bool:
    return character == " " or unicodedata.category(character) not in _UNSAFE


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def masked_text(text: str) -> str:
    """Text without what looks like a secret: passwords of URLs, `token=...`, bearer tokens."""
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def masked(value: Any) -> Any:
    """A JSON value in which the values of fields named like secrets are `***`."""
    match value:
        case dict():
            fields = cast("dict[str, Any]", value)
            return {
                key: MASK if each is not None and is_secret(key) else masked(each)
                for key, each in fields.items()
            }
        case list():
            return [masked(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
        case str():
            return masked_text(value)
        case _:
            return value


def is_secret(name: str) -> bool:
    """Whether a field of that name is likely to hold a secret."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").replace(" ", "_")
    return any(_SECRET_NAME.search(part) is not None for part in {words, words.rpartition("_")[2]})
