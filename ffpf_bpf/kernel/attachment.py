"""How an entry program is attached to a hook of an interface: by an XDP link, by a tcx link, or as a filter of tc.

A link goes with the descriptor, so with the process. A filter outlives its maker: see `filters.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Protocol

from ffpf_bpf.errors import KernelError, TapBusy
from ffpf_bpf.graph.effect import tap_name
from ffpf_bpf.kernel import calls, filters
from ffpf_bpf.kernel.dispatcher import is_dispatcher
from ffpf_bpf.kernel.holders import ENTRY_NAME, described, owner_of
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Descriptor
from ffpf_bpf.kernel.refusals import explained

LONGEST_FAREWELL_S = 2.0
TCX_TYPES = {"tc-ingress": calls.ATTACH_TCX_INGRESS, "tc-egress": calls.ATTACH_TCX_EGRESS}
FORCED = "FFPF_TC"  # environment: `cls_bpf` attaches at tc as on kernels that have no tcx
NO_INTERFACE = 0x7FFF_FFFF
HIDDEN = "(hidden)"  # no program's name: those are letters, digits, `_` and `.`
NEXT_PROGRAM = bytes.fromhex("b7000000ffffffff 9500000000000000")  # r0 = TCX_NEXT; exit


class Attachment(Protocol):
    """An entry program that is attached. `mode` says how; `refusal` why not better, if it could be better."""

    mode: str
    refusal: str

    def is_there(self) -> bool:
        """Whether the interface is still there."""

    def holds(self, interface: Interface) -> bool:
        """Whether this is what is attached at that interface."""

    def close(self) -> None:
        """Detach, whoever has inherited the descriptor."""


class _Link:
    """A link of the kernel's, which holds the program as long as this descriptor, or a copy of it, is open."""

    def __init__(self, descriptor: int, mode: str, refusal: str = "") -> None:
        self.mode = mode
        self.refusal = refusal
        self._link = Descriptor(descriptor)

    def is_there(self) -> bool:
        return calls.linked_interface(self._link.fileno) != 0

    def holds(self, interface: Interface) -> bool:
        return calls.linked_interface(self._link.fileno) == interface.index

    def close(self) -> None:
        with self._link, contextlib.suppress(KernelError):
            # Closing the link detaches too, but not while a child of this process has inherited it.
            calls.detach(self._link.fileno)


class NotNative(Exception):
    """The driver takes the program in generic mode alone, if at all."""


def attach(program: Descriptor, interface: Interface, hook: str, *, native_only: bool = False) -> Attachment:
    """Attach a program: at XDP native, or generic where the driver has no native mode; at tc by a tcx link, or as a
    filter where the kernel has none, in front of the programs that are there.

    Raises TapBusy, naming the holder, if XDP is taken, and NotNative if it was to be `native_only`. At tc any number of
    programs stand behind each other.
    """
    if hook == "xdp":
        return _attach_xdp(program, interface, native_only)
    try:
        if is_forced():
            return filters.attach(program, interface, hook, f"{FORCED}={os.environ[FORCED]}")
        try:
            return _Link(calls.attach_tcx(program.fileno, interface.index, TCX_TYPES[hook]), "tcx")
        except KernelError as error:
            if error.errno != errno.EINVAL or has_tcx():
                raise
        return filters.attach(program, interface, hook, "this kernel has no tcx links")
    except KernelError as error:
        raise _at(error, tap_name(interface.name, hook)) from None


def is_forced() -> bool:
    """Whether tc's filters are to be used where there are links. Raises KernelError for a word nobody knows."""
    match os.environ.get(FORCED, ""):
        case "":
            return False
        case "cls_bpf":
            return True
        case other:
            raise KernelError(f"{FORCED} is `{other}`", errno=errno.EINVAL, help=f"`{FORCED}=cls_bpf`, or leave it out")


def has_tcx() -> bool:
    """Whether the kernel has tcx links: it then looks for the interface, of which there is none."""
    try:
        with Descriptor(calls.load_program("ffpf_probe", NEXT_PROGRAM, calls.PROG_SCHED_CLS)) as program:
            calls.close(calls.attach_tcx(program.fileno, NO_INTERFACE, calls.ATTACH_TCX_INGRESS))
    except KernelError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV):
            return error.errno == errno.ENODEV
        raise
    return True


def refuse_if_held(interface: Interface) -> calls.ProgramInfo | None:
    """Raise TapBusy if the interface carries an XDP program; what a process just dead left gets a moment to go. A
    dispatcher of libxdp is returned: it can be joined."""
    where = f"{interface.name}@xdp"
    patient_until_s = time.monotonic() + LONGEST_FAREWELL_S
    while True:
        program_id, mode = calls.attached_xdp(interface.index)
        if not program_id:
            return None
        info = _info_if_there(program_id)
        if info is None:
            continue
        if is_dispatcher(info):
            return info
        if info.name != ENTRY_NAME:
            holder = f"the XDP program {described(info, mode)} of somebody else"
            if info.name == HIDDEN:
                holder = f"an XDP program (id {program_id}, {mode}); to see whose it is takes CAP_SYS_ADMIN"
            raise TapBusy(
                f"the interface carries {holder}",
                errno=errno.EBUSY,
                where=where,
                help=f"it is not evicted: see `bpftool prog show id {info.id}`, detach it, or grab from "
                f"`{interface.name}@tc-ingress`",
            )
        owner = owner_of(info.map_ids)
        if owner.is_alive or time.monotonic() > patient_until_s:
            raise TapBusy(
                f"{owner} grabs from this interface already",
                errno=errno.EBUSY,
                where=where,
                help="give that process all your flows (`ffpf run` takes several expressions), stop it, or grab from "
                f"`{interface.name}@tc-ingress`",
            )
        time.sleep(0.01)


class _XdpLink(_Link):
    """The link that holds the one program that an interface has at XDP."""

    def __init__(self, descriptor: int, interface: Interface, mode: str, refusal: str) -> None:
        super().__init__(descriptor, mode, refusal)
        try:
            self._program_id = calls.attached_xdp(interface.index)[0]
        except BaseException:
            self._link.close()
            raise

    def holds(self, interface: Interface) -> bool:
        return calls.attached_xdp(interface.index)[0] == self._program_id


def _attach_xdp(program: Descriptor, interface: Interface, native_only: bool) -> Attachment:
    refusal = ""
    for flags, mode in ((calls.XDP_FLAGS_DRV_MODE, "native"), (calls.XDP_FLAGS_SKB_MODE, "generic")):
        try:
            return _XdpLink(calls.attach_xdp(program.fileno, interface.index, flags), interface, mode, refusal)
        except KernelError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                refuse_if_held(interface)
            if error.errno in (errno.EPERM, errno.EACCES):
                raise _at(error, f"{interface.name}@xdp") from None
            if native_only:
                raise NotNative from None
            refused = explained(error.errno, program.fileno, interface.index, flags)
            if mode == "generic":
                raise KernelError(
                    f"cannot attach at XDP: {refused}",
                    errno=error.errno,
                    where=f"{interface.name}@xdp",
                    help=f"grab from `{interface.name}@tc-ingress`",
                ) from None
            refusal = refused
    raise AssertionError("unreachable")


def _at(error: KernelError, where: str) -> KernelError:
    """The error, which says where."""
    return KernelError(error.message, errno=error.errno, where=where, help=error.help)


def _info_if_there(program_id: int) -> calls.ProgramInfo | None:
    """What the kernel says of a program, None if it went meanwhile; HIDDEN if it does not say."""
    try:
        return calls.program_info(program_id)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        if error.errno == errno.EPERM:  # to look at programs takes CAP_SYS_ADMIN, which flows do not need
            return calls.ProgramInfo(program_id, HIDDEN, (), 0, 0)
        raise
