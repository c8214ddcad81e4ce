"""What this host can do, found by trying: the facts behind `ffpf doctor`."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ffpf_bpf.errors import FfpfError, KernelError, VerifierError
from ffpf_bpf.kernel import calls, functions, hooks
from ffpf_bpf.kernel.holders import described
from ffpf_bpf.kernel.maps import Descriptor, MappedArray, ProgArray

CAPABILITIES = {"CAP_BPF": 39, "CAP_NET_ADMIN": 12, "CAP_PERFMON": 38}
CAP_SYS_ADMIN = 21
RING_BYTES = 4 << 20
NODES_WITH_ATOMICS = "(limit), (head), (newflow) and the gaps of (histogram)"
# w2 = 0; r3 = r10; r3 += -8; *(u64 *)(r10 - 8) = 0; w4 = 8; call bpf_xdp_load_bytes; r0 = 2; exit
LOAD_BYTES_PROGRAM = bytes.fromhex(
    "7a0af8ff00000000 b702000000000000 bfa3000000000000 07030000f8ffffff b704000008000000 85000000bd000000"
    " b700000002000000 9500000000000000"
)


# *(u64 *)(r10 - 8) = 0; r1 = 1; r1 = atomic_fetch_add((u64 *)(r10 - 8), r1); r0 = 2; exit
ATOMIC_PROGRAM = bytes.fromhex("7a0af8ff00000000 b701000001000000 db1af8ff01000000 b700000002000000 9500000000000000")


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


def examine() -> Iterator[Finding]:
    """Try everything a flow needs, one by one; leaves nothing behind."""
    yield Finding("kernel", True, f"{platform.system()} {platform.release()} on {platform.machine()}")
    yield _capabilities()
    yield _tried("bcc", "libbpf through bcc's library", _load_bcc, "apt-get install python3-bpfcc")
    yield _jit()
    yield _tried("XDP programs", "loads", lambda: _loads(calls.PASS_PROGRAM), ROOT)
    yield _tried("mapped arrays", "a map shared as memory", _map_array, ROOT)
    yield _locked_memory()
    yield _tried("tail calls", "a prog array", _prog_array, ROOT)
    yield _tried("waiting pause", "membarrier, or a map of maps", calls.wait_for_programs, ROOT)
    yield from _optional()
    for trial in hooks.examine():
        yield Finding(trial.name, trial.works, trial.seen, HOOK_HELP.get(trial.name, ""), needed=False)
    yield _bitcode_compiler()


ROOT = "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
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
        ("waiting pause, map of maps", "waits", calls.wait_by_map_of_maps, ROOT),
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
    """Each interface, and the XDP program it carries."""
    for index, name in socket.if_nameindex():
        try:
            program_id, mode = calls.attached_xdp(index)
            if program_id == 0:
                yield Finding(f"interface {name}", True, "free at XDP")
                continue
            holder = described(calls.program_info(program_id), mode)
            yield Finding(f"interface {name}", True, f"carries XDP program {holder}")
        except KernelError as error:
            yield Finding(f"interface {name}", True, f"unknown: {error.message}")


def _tried(name: str, seen: str, attempt: Callable[[], object], mend: str) -> Finding:
    try:
        attempt()
    except FfpfError as error:
        return Finding(name, False, error.message, ROOT if _is_privilege(error) else mend)
    except OSError as error:
        return Finding(name, False, str(error), mend)
    return Finding(name, True, seen)


def _is_privilege(error: FfpfError) -> bool:
    return isinstance(error, KernelError) and error.errno in (errno.EPERM, errno.EACCES)


def _capabilities() -> Finding:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    if effective >> CAP_SYS_ADMIN & 1:
        return Finding("privileges", True, f"CAP_SYS_ADMIN, as uid {os.geteuid()}")
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        return Finding("privileges", False, f"uid {os.geteuid()} lacks {', '.join(missing)}", "run as root")
    return Finding("privileges", True, ", ".join(CAPABILITIES))


def _load_bcc() -> None:
    calls.library()


def _jit() -> Finding:
    path = Path("/proc/sys/net/core/bpf_jit_enable")
    try:
        enabled = path.read_text(encoding="ascii").strip() != "0"
    except PermissionError:
        return Finding("JIT", True, "not readable without root")
    except OSError:
        return Finding("JIT", True, "not visible in this network namespace, or always on")
    return Finding("JIT", enabled, "on" if enabled else "off: programs run several times slower", f"echo 1 > {path}")


def _loads(instructions: bytes, flags: int = 0) -> None:
    with Descriptor(calls.load_program("ffpf_probe", instructions, calls.PROG_XDP, flags)):
        pass


def _map_array(value_bytes: int = 64) -> None:
    with MappedArray("ffpf_probe", value_bytes):
        pass


def _locked_memory() -> Finding:
    """Before Linux 5.11 maps count against RLIMIT_MEMLOCK, which libbpf raises if it may (CAP_SYS_RESOURCE)."""
    mend = "`ulimit -l unlimited`, or CAP_SYS_RESOURCE: before Linux 5.11 maps count as locked memory"
    found = _tried("locked memory", "enough for a ring", lambda: _map_array(RING_BYTES), mend)
    lacks_right = not found.works and not _capabilities().works
    return replace(found, mend=ROOT if lacks_right else mend if not found.works else "")


def _prog_array() -> None:
    with ProgArray("ffpf_probe", 2):
        pass


def _bitcode_compiler() -> Finding:
    """clang is only needed to build from a checkout, so its absence is no failure."""
    for name in (*(f"clang-{version}" for version in range(22, 15, -1)), "clang"):
        path = shutil.which(name)
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return Finding("clang (to build only)", True, version.splitlines()[0] if version else path)
    return Finding("clang (to build only)", True, "absent; needed only to build bpf_src/ from a checkout")
