"""Standard streams that cannot show every character: none of them is a reason to fail."""

from __future__ import annotations

import codecs
import sys
from io import TextIOWrapper
from typing import Final

_HANDLER: Final = "invoke_retry.cli"
# what the command draws itself; all else is escaped
_PLAIN: Final = {
    **dict.fromkeys("█▉▊▋▌▍▆▇▅", "#"),
    **dict.fromkeys("▎▏▁▂", "_"),
    **dict.fromkeys("▃▄", "="),
    "·": ".",
    "◆": "*",
    "…": "~",
}


def accept_every_character() -> None:
    """Have standard output and error show what their encoding lacks in some other way."""
    codecs.register_error(_HANDLER, _shown_otherwise)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _shown_otherwise(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    shown = (_PLAIN.get(each) or each.encode("ascii", "backslashreplace") for each in lacking)
    return "".join(each if isinstance(each, str) else each.decode() for each in shown), error.end
