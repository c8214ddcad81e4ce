"""An entry program as a component of the dispatcher that libxdp runs at an interface, beside those of others.

The entry program becomes an extension (BPF_PROG_TYPE_EXT), which takes the place of one of the dispatcher's functions;
the programs of the chain stay XDP programs, reached from it by tail calls: extensions cannot be reached so. The kernel
restricts both, differently from version to version (ARCHITECTURE.md, Hooks), so it is tried.

libxdp pins what it attaches. So a guardian beside the component is the process that attaches and detaches it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ffpf_bpf.errors import KernelError, TapBusy, VerifierError
from ffpf_bpf.kernel import calls, functions
from ffpf_bpf.kernel.guards import Guardian, Stale
from ffpf_bpf.kernel.holders import DISPATCHER, ENTRY_NAME, described, owner_of
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Descriptor, ProgArray
from ffpf_bpf.kernel.programs import Binding, ProgramLike, bound

FUNCTION = "prog0"  # of the dispatcher's functions, which are alike: libxdp says which one it becomes in the end
NO_BPFFS = "libxdp finds no pins of it: is /sys/fs/bpf, where they are, visible here? (`ip netns exec` hides it)"


class Component:
    """An entry program that libxdp's dispatcher runs."""

    mode = "dispatcher"
    refusal = ""

    def __init__(self, interface: Interface, program: Descriptor, guardian: Guardian) -> None:
        self._index = interface.index
        self._program_id = calls.info_of(program.fileno).id
        self._guardian = guardian

    def is_there(self) -> bool:
        return calls.is_linked(self._program_id)

    def holds(self, interface: Interface) -> bool:
        return interface.index == self._index and self.is_there()

    def close(self) -> None:
        self._guardian.close()


def is_dispatcher(info: calls.ProgramInfo) -> bool:
    """Whether a program is libxdp's dispatcher."""
    return info.name == DISPATCHER


def join(
    entry: ProgramLike, bindings: Mapping[str, Binding], links: ProgArray, interface: Interface, held: calls.ProgramInfo
) -> tuple[Descriptor, Component]:
    """Load an entry program as an extension, and have libxdp make it a component of the dispatcher `held`. Nothing of
    the others changes. Raises TapBusy, with the reason, where that is impossible."""
    with ExitStack() as undo:
        program = undo.enter_context(_loaded(entry, bindings, interface, held))
        _try_chain(links, interface, held)
        try:
            guardian = undo.enter_context(Guardian("component", interface.index, calls.info_of(program.fileno).id))
        except KernelError as error:
            raise _busy(interface, held, _of_libxdp(error)) from None
        component = Component(interface, program, guardian)
        undo.pop_all()
        return program, component


def _loaded(
    entry: ProgramLike, bindings: Mapping[str, Binding], interface: Interface, held: calls.ProgramInfo
) -> Descriptor:
    with (
        Descriptor(calls.open_program(held.id)) as target,
        Descriptor(calls.open_types(held.types)) as types,
    ):
        function = functions.number_in(held.types, FUNCTION)
        if not function:
            raise _busy(interface, held, f"it has no function `{FUNCTION}` as libxdp's have")
        try:
            return Descriptor(
                calls.load_extension(entry.name, bound(entry, bindings), target.fileno, types.fileno, function)
            )
        except VerifierError as error:
            if "changes packet data" in error.log:
                why = "this kernel lets a program with tail calls join only a dispatcher of libxdp 1.5.5 or newer"
                raise _busy(interface, held, why) from None
            why = error.log.strip().partition("\n")[0] or error.message
            raise _busy(interface, held, f"the kernel says `{why}`") from None


def _try_chain(links: ProgArray, interface: Interface, held: calls.ProgramInfo) -> None:
    """Whether tail calls lead from the extension to XDP programs. Raises TapBusy if not."""
    with Descriptor(calls.load_program("ffpf_probe", calls.PASS_PROGRAM)) as probe:
        try:
            links.set(0, probe)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            why = "this kernel lets no tail call lead from an extension to XDP programs"
            raise _busy(interface, held, why) from None
        links.clear(0)


def _of_libxdp(error: KernelError) -> str:
    match error.errno:
        case errno.ELIBACC:
            return "there is no libxdp here (`apt-get install libxdp1`)"
        case errno.ENOENT:
            return NO_BPFFS
        case errno.E2BIG:
            return "it has as many components as it can have"
        case _:
            return f"libxdp says `{error.message}`"


def _busy(interface: Interface, held: calls.ProgramInfo, why: str) -> TapBusy:
    mode = calls.attached_xdp(interface.index)[1]
    return TapBusy(
        f"libxdp's dispatcher {described(held, mode)} runs this interface, and cannot be joined: {why}",
        errno=errno.EBUSY,
        where=f"{interface.name}@xdp",
        help=f"it is not evicted: `xdp-loader status {interface.name}` shows whose programs it runs; grab from "
        f"`{interface.name}@tc-ingress`",
    )


def stale() -> list[Stale]:
    """The components, of dispatchers in this network namespace, whose owners and guardians have died."""
    found = []
    components = [(info, pid) for info in _programs() if (pid := _dead_owner(info))]
    for index, name in socket.if_nameindex() if components else ():
        for info, pid in components:
            with contextlib.suppress(KernelError, OSError):
                held = calls.program_info(calls.attached_xdp(index)[0])
                if is_dispatcher(held) and not _libxdp("is_attached", index, info.id):
                    found.append(Stale(f"{name}@xdp", pid, "component", partial(_remove, index, info.id)))
    return found


def _programs() -> Iterator[calls.ProgramInfo]:
    for program_id in calls.program_ids():
        with contextlib.suppress(KernelError):
            yield calls.program_info(program_id)


def _dead_owner(info: calls.ProgramInfo) -> int:
    """The process that a component of ours was made by, if it has died; otherwise 0."""
    if info.name != ENTRY_NAME or not info.types:
        return 0
    owner = owner_of(info.map_ids)
    return owner.pid if owner.is_dead else 0


def _remove(index: int, program_id: int) -> None:
    if number := _libxdp("detach", index, program_id):
        raise KernelError(f"libxdp cannot remove it: {os.strerror(number).lower()}", errno=number)


def _libxdp(action: str, index: int, program_id: int) -> int:
    """The errno with which that ended, 0 for none."""
    words = [
        sys.executable,
        "-I",
        "-S",
        str(Path(__file__).with_name("libxdp.py")),
        action,
        str(index),
        str(program_id),
    ]
    return subprocess.run(words, check=False, capture_output=True).returncode
