"""What is wrong in a policy file, on its way from a check of one value, through pydantic, to a PolicyError."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic_core import PydanticCustomError

from ffpf_bpf.authorise.decision import shown

MISTAKE = "policy"
LONGEST_SHOWN = 64


def mistake(message: str, help: str, *at: str | int) -> PydanticCustomError:
    """To be raised in a check. `at` leads from the value that is checked to the one that is wrong."""
    return PydanticCustomError(MISTAKE, "{message}", {"message": message, "help": help, "at": at})


def quoted(value: object) -> str:
    """A value of the file, for a message: in backticks, not too long, and nothing that does not print."""
    text = str(value)
    return shown(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}...")


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """Help for an unknown word: the one that was meant, or all of them."""
    known = tuple(known)
    near = difflib.get_close_matches(word[:LONGEST_SHOWN].lower(), known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"{otherwise} {', '.join(known)}"
