"""Every error a user can meet, as one tree.

    FfpfError
    |-- ExpressionError     a flow expression, filter or parameter is wrong
    |-- IllegalState        a life-cycle call in the wrong state
    |-- Rejected            the policy says no (carries the decision)
    |-- PolicyError         a policy that cannot be read, which denies (authorise/policy.py)
    |-- AuditError          a compiled program does more than the graph's effects grant
    |-- KernelError         the kernel or the privileges do not allow it
    |   |-- VerifierError   the verifier refused a program (names the node)
    |   `-- TapBusy         somebody else holds the interface
    `-- CaptureError        delivery failed: a file, a pipe, a disk

Messages are lower case, without a full stop, user text in backticks, and one line of help says what to do.
A class exists only where a caller would catch it apart.
"""

from __future__ import annotations


def with_article(class_name: str) -> str:
    """A node of a class, in a message: "a `snap`", "an `anonymise`"."""
    return f"{'an' if class_name.startswith(tuple('aeio')) else 'a'} `{class_name}`"


class FfpfError(Exception):
    """`where: what is wrong`, then `help: what to do`.

    `where` names the node, file or interface concerned; either may be empty.
    `exit_code` is what the command line ends with.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", help: str = "") -> None:
        super().__init__(message, where, help)
        self.message = message
        self.where = where
        self.help = help

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\nhelp: {self.help}" if self.help else text


class ExpressionError(FfpfError):
    """A flow expression, a filter or a node parameter that cannot be understood.

    `excerpt` shows the place: the line of text, and a caret under it.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str = "", help: str = "", excerpt: str = "") -> None:
        super().__init__(message, where=where, help=help)
        self.excerpt = excerpt

    def __str__(self) -> str:
        head, *rest = super().__str__().split("\nhelp: ")
        return "\n".join([head, *([self.excerpt] if self.excerpt else []), *(f"help: {line}" for line in rest)])


class IllegalState(FfpfError):
    """A call of the life cycle that the flow's state does not allow."""


class Rejected(FfpfError):
    """The decision on the flow definition is no. `decision` says why, obligation by obligation."""

    exit_code = 3

    def __init__(self, message: str, *, decision: object, where: str = "", help: str = "") -> None:
        super().__init__(message, where=where, help=help)
        self.decision = decision


class AuditError(FfpfError):
    """A compiled program does more than the effects of its graph grant: it is not loaded. `at` is the instruction."""

    exit_code = 3

    def __init__(self, message: str, *, at: int = 0, where: str = "", help: str = "") -> None:
        super().__init__(message, where=where, help=help)
        self.at = at


class KernelError(FfpfError):
    """The kernel refused. `errno` is its number, or 0."""

    exit_code = 4

    def __init__(self, message: str, *, errno: int = 0, where: str = "", help: str = "") -> None:
        super().__init__(message, where=where, help=help)
        self.errno = errno


class VerifierError(KernelError):
    """The verifier refused a program. `log` is its whole log."""

    def __init__(self, message: str, *, log: str, errno: int = 0, where: str = "", help: str = "") -> None:
        super().__init__(message, errno=errno, where=where, help=help)
        self.log = log


class TapBusy(KernelError):
    """An interface already carries somebody else's program."""


class CaptureError(FfpfError):
    """Packets could not be written or read: file, pipe or disk."""
