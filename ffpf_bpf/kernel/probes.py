"""What this host can do, found by trying: the facts behind `ffpf doctor`."""

from __future__ import annotations

import errno
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

from ffpf_bpf.errors import FfpfError, KernelError, VerifierError
from ffpf_bpf.kernel import calls, functions, hooks, host, interfaces, privileges
from ffpf_bpf.kernel.finding import Finding
from ffpf_bpf.kernel.holders import described, is_monitor
from ffpf_bpf.kernel.maps import Bell, Descriptor, MappedArray, ProgArray

RING_BYTES = 4 << 20
PRIVILEGES = "see `privileges`"
NODES_WITH_ATOMICS = "(limit), (head), (newflow) and the gaps of (histogram)"
# w2 = 0; r3 = r10; r3 += -8; *(u64 *)(r10 - 8) = 0; w4 = 8; call bpf_xdp_load_bytes; r0 = 2; exit
LOAD_BYTES_PROGRAM = bytes.fromhex(
    "7a0af8ff00000000 b702000000000000 bfa3000000000000 07030000f8ffffff b704000008000000 85000000bd000000"
    " b700000002000000 9500000000000000"
)


# *(u64 *)(r10 - 8) = 0; r1 = 1; r1 = atomic_fetch_add((u64 *)(r10 - 8), r1); r0 = 2; exit
ATOMIC_PROGRAM = bytes.fromhex("7a0af8ff00000000 b701000001000000 db1af8ff01000000 b700000002000000 9500000000000000")


def examine() -> Iterator[Finding]:
    """Try everything a flow needs, one by one; leaves nothing behind."""
    yield Finding("kernel", True, f"{platform.system()} {platform.release()} on {platform.machine()}")
    yield privileges.examine()
    yield _tried("bcc", "libbpf through bcc's library", _load_bcc, "apt-get install python3-bpfcc")
    yield from host.examine()
    yield _tried("XDP programs", "loads", lambda: _loads(calls.PASS_PROGRAM), PRIVILEGES)
    yield _tried("mapped arrays", "a map shared as memory", _map_array, PRIVILEGES)
    yield _locked_memory()
    yield _tried("tail calls", "a prog array", _prog_array, PRIVILEGES)
    yield _tried("waking readers", "a BPF ring buffer", _bell, "it takes Linux 5.8 or newer")
    yield _tried("waiting pause", "membarrier, or a map of maps", calls.wait_for_programs, PRIVILEGES)
    yield from _optional()
    for trial in hooks.examine():
        yield Finding(trial.name, trial.works, trial.seen, HOOK_HELP.get(trial.name, ""), needed=False)
    yield _bitcode_compiler()


HOOK_HELP = {
    "native XDP": "generic XDP is used instead, which is slower",
    "tcx": "filters of tc are used instead; links take Linux 6.6 or newer",
}


def _optional() -> Iterator[Finding]:
    for name, seen, attempt, mend in (
        (
            "bpf_xdp_load_bytes",
            "loads",
            lambda: _loads(LOAD_BYTES_PROGRAM),
            "packets are copied by words instead; it takes Linux 5.18 or newer",
        ),
        ("waiting pause, map of maps", "waits", calls.wait_by_map_of_maps, PRIVILEGES),
        (
            "multi-buffer frames",
            "programs load",
            lambda: _loads(calls.PASS_PROGRAM, calls.F_XDP_HAS_FRAGS),
            "native mode for large MTUs takes Linux 5.18",
        ),
        ("atomic operations", "load", lambda: _loads(ATOMIC_PROGRAM), f"{NODES_WITH_ATOMICS} take Linux 5.12 or newer"),
        (
            "loops of (scan)",
            "bpf_iter_num",
            lambda: functions.number("bpf_iter_num_new"),
            "it takes Linux 6.4 or newer",
        ),
    ):
        yield replace(_tried(name, seen, attempt, mend), needed=False)


@cache
def lacks_load_bytes() -> bool:
    """Whether this kernel knows no `bpf_xdp_load_bytes`: only then, not where it cannot be found out."""
    try:
        _loads(LOAD_BYTES_PROGRAM)
    except VerifierError:
        return True
    except FfpfError:
        return False
    return False


@cache
def has_frags() -> bool:
    """Whether this kernel has programs for several buffers. Raises KernelError if that cannot be found out."""
    try:
        _loads(calls.PASS_PROGRAM, calls.F_XDP_HAS_FRAGS)
    except VerifierError:
        return False
    return True


def examine_interfaces() -> Iterator[Finding]:
    """Each interface, and the XDP program it carries, or at which hooks its packets can be grabbed."""
    for index, name in socket.if_nameindex():
        yield Finding(f"interface {name}", True, _seen(index, name))


def _seen(index: int, name: str) -> str:
    try:
        if interfaces.find(name).is_layer_3:
            return "a layer 3 device: at tc"
        program_id, mode = calls.attached_xdp(index)
        if program_id == 0:
            return "free at XDP"
        holder = calls.program_info(program_id)
        ends = ": a monitor port, whose frames end there" if is_monitor(holder.map_ids) else ""
        return f"carries XDP program {described(holder, mode)}{ends}"
    except KernelError as error:
        return f"refused: {error.message}" if error.errno == errno.EPROTONOSUPPORT else f"unknown: {error.message}"


def _tried(name: str, seen: str, attempt: Callable[[], object], mend: str) -> Finding:
    try:
        attempt()
    except FfpfError as error:
        return Finding(name, False, error.message, PRIVILEGES if _is_privilege(error) else mend)
    except OSError as error:
        return Finding(name, False, str(error), mend)
    return Finding(name, True, seen)


def _is_privilege(error: FfpfError) -> bool:
    return isinstance(error, KernelError) and error.errno in (errno.EPERM, errno.EACCES)


def _load_bcc() -> None:
    calls.library()


def _loads(instructions: bytes, flags: int = 0) -> None:
    with Descriptor(calls.load_program("ffpf_probe", instructions, calls.PROG_XDP, flags)):
        pass


def _map_array(value_bytes: int = 64) -> None:
    with MappedArray("ffpf_probe", value_bytes):
        pass


def _locked_memory() -> Finding:
    """Before Linux 5.11 maps count against RLIMIT_MEMLOCK, which is raised if it may be."""
    mend = f"{privileges.MEMLOCK}: before Linux 5.11 maps count as locked memory"
    found = _tried("locked memory", "enough for a ring", lambda: _map_array(RING_BYTES), mend)
    return replace(found, mend=PRIVILEGES if privileges.missing() else mend) if not found.works else found


def _prog_array() -> None:
    with ProgArray("ffpf_probe", 2):
        pass


def _bell() -> None:
    with Bell("ffpf_probe"):
        pass


def _bitcode_compiler() -> Finding:
    """clang is only needed to build from a checkout, so its absence is no failure."""
    for name in (*(f"clang-{version}" for version in range(22, 15, -1)), "clang"):
        path = shutil.which(name)
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return Finding("clang (to build only)", True, version.splitlines()[0] if version else path)
    return Finding("clang (to build only)", True, "absent; needed only to build bpf_src/ from a checkout")
