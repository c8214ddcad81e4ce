"""Text that tomllib takes long for, or ends at without a place: deeply nested, keys of many parts, endless numbers."""

from __future__ import annotations

import re

from ffpf_bpf.authorise.place import STRING, line_and_column
from ffpf_bpf.authorise.policy import PolicyError

MOST_PARTS = 16  # of a dotted key; the deepest that any file has are 4
MOST_NESTED = 32
LONGEST_NUMBER = 100
TOKEN = re.compile(rf"(?P<blank>[ \t]+|#[^\n]*)|(?P<part>{STRING.pattern}|[A-Za-z0-9_+-]+)|(?P<sign>.|\n)", re.DOTALL)
OPENING, CLOSING = frozenset("[{"), frozenset("]}")


def check_shallow(text: str, file: str) -> None:
    """Raises PolicyError with the place, if it is not."""

    def error(what: str, at: int) -> PolicyError:
        line, column = line_and_column(text, at)
        return PolicyError(what, where=f"{file}:{line}:{column}", help="https://toml.io has the syntax")

    depth = parts = 0
    last = ""
    for match in TOKEN.finditer(text):
        token = match[0]
        if match["blank"]:
            continue
        if match["part"]:
            parts = parts + 1 if last == "." else 1
            if parts > MOST_PARTS:
                raise error(f"a key of more than {MOST_PARTS} parts", match.start())
            if len(token) > LONGEST_NUMBER and token[0] in "+-0123456789":
                raise error(f"a number of {len(token):,} characters", match.start())
        elif token in OPENING:
            depth += 1
            if depth > MOST_NESTED:
                raise error("nested too deeply", match.start())
        elif token in CLOSING:
            depth -= 1
        last = token
