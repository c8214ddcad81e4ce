"""What was found about this host: a line of `ffpf doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried: whether it works, what was seen, and the command that mends it if not.

    What is not `needed` only some nodes or modes use; flows work without it.
    """

    name: str
    works: bool
    seen: str
    mend: str = ""
    needed: bool = True
