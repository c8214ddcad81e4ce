"""Policies as values: what an administrator allows, after it was read and checked.

A rule only ever allows. Rules do not add up: a flow is accepted if at least one rule that names its subject allows
the complete definition, so that no two rules combine into what neither of them says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.graph.classes.device import Device

ANY = "*"


class PolicyError(FfpfError):
    """A policy that cannot be read or does not mean anything: it denies, whatever else is in the directory."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Order:
    """On every path, each node of class `function` has one of class `required` in front of it (or behind it: `after` is
    False)."""

    function: str
    required: str
    after: bool

    @property
    def claim(self) -> str:
        return f"`{self.function}` comes {'after' if self.after else 'before'} `{self.required}` on every path"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds; None is no bound. `buffer_bytes` is per CPU, `memory_bytes` of nodes, `snaplen` in bytes,
    `sample_at_least` the N of 1 in N."""

    flows: int | None = None
    nodes: int | None = None
    snaplen: int | None = None
    buffer_bytes: int | None = None
    memory_bytes: int | None = None
    sample_at_least: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[rule]]`. `where` is its place in its file: `students.toml:12:1`."""

    name: str
    subjects: tuple[str, ...]
    taps: tuple[str, ...]
    classes: tuple[str, ...]
    order: tuple[Order, ...] = ()
    limits: Limits = Limits()
    where: str = field(default="", compare=False)

    def names(self, subject: Subject) -> bool:
        """Whether the rule is about this subject."""
        wanted = {ANY, f"user:{subject.user}", *(f"group:{group}" for group in subject.groups)}
        return not wanted.isdisjoint(self.subjects)

    def allows_tap(self, device: Device) -> bool:
        """Interface and hook are matched apart, so a `*` for one never reaches into the other."""
        for glob in self.taps:
            interface, hook = split_tap(glob)
            if fnmatchcase(device.interface, interface) and fnmatchcase(device.hook, hook):
                return True
        return False

    def allows_class(self, name: str) -> bool:
        """`device` need not be listed: `taps` says which."""
        return name == Device.class_name or name in self.classes or ANY in self.classes


@dataclass(frozen=True, slots=True)
class Policies:
    """The rules of a directory, in the order of the file names and of the files. None at all denies everybody."""

    rules: tuple[Rule, ...] = ()


def split_tap(glob: str) -> tuple[str, str]:
    """Interface and hook of a glob; without `@` the hook is xdp, as in a flow expression."""
    interface, at, hook = glob.partition("@")
    return interface, hook if at else "xdp"
