"""The one module that talks to the kernel: libbpf through bcc's library handle, and two system calls it lacks.

Every call returns its result or raises KernelError with the kernel's errno; nothing is retried, cached or undone here.
`CALLS` lists what is called, so that tests can inject a failure or a kill at each.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from ffpf_bpf.errors import FfpfError, KernelError, VerifierError
from ffpf_bpf.kernel import privileges, structures

# <linux/bpf.h>
MAP_ARRAY, MAP_PROG_ARRAY, MAP_ARRAY_OF_MAPS, MAP_RINGBUF = 2, 3, 12, 27
PROG_SCHED_CLS, PROG_XDP, PROG_EXT = 3, 6, 28
ATTACH_XDP, ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS = 37, 46, 47
F_MMAPABLE = 1 << 10
F_XDP_HAS_FRAGS = 1 << 5
F_BEFORE = 1 << 3
XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 1 << 1, 1 << 2
LICENSE = b"GPL"
# r0 = XDP_PASS; exit. For probes: it is attached nowhere that packets come.
PASS_PROGRAM = bytes.fromhex("b700000002000000 9500000000000000")
LOG_BYTES = 1 << 24
# The verifier's log with each state: only asked for after a refusal.
LOG_LEVEL = 1
MEMBARRIER_NUMBER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
MEMBARRIER_CMD_GLOBAL = 1


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program."""

    id: int
    name: str
    map_ids: tuple[int, ...]
    loaded_ns: int  # since the host started
    types: int  # the id of its BTF


@dataclass(frozen=True, slots=True)
class TestRun:
    """What BPF_PROG_TEST_RUN gave: the verdict, the packet afterwards, nanoseconds per run."""

    verdict: int
    packet: bytes
    duration_ns: int


Result = TypeVar("Result")
CALLS: list[str] = []


def _call(function: Callable[..., Result]) -> Callable[..., Result]:
    CALLS.append(function.__name__)
    return function


@_call
def create_map(kind: int, name: str, key_bytes: int, value_bytes: int, entries: int, flags: int = 0) -> int:
    """The descriptor of a new map."""
    options = structures.MapOptions(sz=ctypes.sizeof(structures.MapOptions), map_flags=flags)
    arguments = (kind, name.encode()[:15], key_bytes, value_bytes, entries, ctypes.byref(options))
    result = library().bpf_map_create(*arguments)
    if result == -errno.EPERM and privileges.has_memlock() and privileges.raise_memlock():
        result = library().bpf_map_create(*arguments)
    return _checked(result, f"cannot create a map of {value_bytes * entries:,} bytes")


@_call
def load_program(name: str, instructions: bytes, kind: int = PROG_XDP, flags: int = 0) -> int:
    """The descriptor of a loaded program. Raises VerifierError with the log if the verifier refuses it."""
    return _loaded(name, instructions, kind, structures.LoadOptions(prog_flags=flags))


@_call
def load_extension(name: str, instructions: bytes, target: int, types: int, function: int) -> int:
    """The descriptor of a program that takes the place of a function of the program `target`: the one that is number
    `function` of the BTF of descriptor `types`, whose form it has."""
    begins = (ctypes.c_uint32 * 2)(0, function)  # struct bpf_func_info: at the first instruction
    options = structures.LoadOptions(
        prog_btf_fd=types,
        attach_prog_fd=target,
        attach_btf_id=function,
        func_info=ctypes.addressof(begins),
        func_info_cnt=1,
        func_info_rec_size=ctypes.sizeof(begins),
    )
    return _loaded(name, instructions, PROG_EXT, options)


def _loaded(name: str, instructions: bytes, kind: int, options: structures.LoadOptions) -> int:
    result, _ = _load(name, instructions, kind, options, log_bytes=0)
    if result >= 0:
        return result
    if -result in (errno.EPERM, errno.ENOMEM, errno.ENOSYS, errno.EMFILE, errno.ENFILE):
        return _checked(result, f"cannot load program `{name}`")
    if privileges.missing():
        # Without CAP_PERFMON the verifier refuses what it takes otherwise.
        return _checked(-errno.EPERM, f"cannot load program `{name}`")
    result, log = _load(name, instructions, kind, options, log_bytes=LOG_BYTES)
    if result >= 0:
        return result
    raise VerifierError(f"the verifier refused program `{name}`", log=log, errno=-result)


@_call
def attach_xdp(program: int, interface_index: int, flags: int) -> int:
    """The descriptor of a link that holds `program` at an interface."""
    options = structures.LinkOptions(sz=ctypes.sizeof(structures.LinkOptions), flags=flags)
    return _checked(
        library().bpf_link_create(program, interface_index, ATTACH_XDP, ctypes.byref(options)),
        "cannot attach at XDP",
    )


@_call
def attach_tcx(program: int, interface_index: int, kind: int) -> int:
    """The descriptor of a link that holds `program` at tc, in front of those that are there: `kind` is the direction.
    One behind them would not run where one of them says that it is the last (TCX_PASS)."""
    options = structures.LinkOptions(sz=ctypes.sizeof(structures.LinkOptions), flags=F_BEFORE)
    return _checked(
        library().bpf_link_create(program, interface_index, kind, ctypes.byref(options)), "cannot attach at tc"
    )


@_call
def detach(link: int) -> None:
    """Detach what a link holds, whoever else has the link open."""
    _checked(library().bpf_link_detach(link), "cannot detach")


@_call
def set_program(prog_array: int, index: int, program: int) -> None:
    """Put a program into a slot of a prog array, replacing what is there in one step."""
    key, value = ctypes.c_uint32(index), ctypes.c_uint32(program)
    _checked(
        library().bpf_map_update_elem(prog_array, ctypes.byref(key), ctypes.byref(value), 0),
        "cannot put a program into the chain",
    )


@_call
def clear_program(prog_array: int, index: int) -> None:
    """Empty a slot of a prog array; waits until no program runs that could still follow it."""
    key = ctypes.c_uint32(index)
    result = library().bpf_map_delete_elem(prog_array, ctypes.byref(key))
    if result != -errno.ENOENT:
        _checked(result, "cannot take a program out of the chain")


@_call
def close(descriptor: int) -> None:
    """Close a descriptor; what it held alive goes."""
    os.close(descriptor)


@_call
def wait_for_programs() -> None:
    """Return when every program that was running has ended: an RCU grace period.

    By membarrier(2); where the kernel has none or CPUs are isolated (nohz_full), by an update of a map of maps, after
    which the kernel waits on purpose (kernel/bpf/syscall.c, maybe_wait_bpf_programs).
    """
    number = MEMBARRIER_NUMBER.get(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    if number is None or libc.syscall(number, MEMBARRIER_CMD_GLOBAL, 0, 0) != 0:
        wait_by_map_of_maps()


def wait_by_map_of_maps() -> None:
    """As `wait_for_programs`, on kernels since 4.18 without membarrier."""
    inner = create_map(MAP_ARRAY, "ffpf_wait", 4, 4, 1)
    try:
        options = structures.MapOptions(sz=ctypes.sizeof(structures.MapOptions), inner_map_fd=inner)
        outer = library().bpf_map_create(MAP_ARRAY_OF_MAPS, b"ffpf_wait", 4, 4, 1, ctypes.byref(options))
        _checked(outer, "cannot wait for running programs")
        try:
            key, value = ctypes.c_uint32(0), ctypes.c_uint32(inner)
            result = library().bpf_map_update_elem(outer, ctypes.byref(key), ctypes.byref(value), 0)
            _checked(result, "cannot wait for running programs")
        finally:
            os.close(outer)
    finally:
        os.close(inner)


@_call
def attached_xdp(interface_index: int) -> tuple[int, str]:
    """The id of the XDP program at an interface, 0 for none, and its mode: `native`, `generic` or `offloaded`."""
    query = structures.XdpQuery(sz=ctypes.sizeof(structures.XdpQuery))
    _checked(library().bpf_xdp_query(interface_index, 0, ctypes.byref(query)), "cannot ask for XDP programs")
    modes = {query.drv_prog_id: "native", query.skb_prog_id: "generic", query.hw_prog_id: "offloaded"}
    modes.pop(0, None)
    return next(iter(modes.items()), (query.prog_id, "native"))


@_call
def linked_interface(link: int) -> int:
    """The index of the interface that an XDP or tcx link holds; 0 once the interface is gone."""
    info = structures.LinkInfo()
    _get_info(link, info)
    return int(info.ifindex)


def open_program(program_id: int) -> int:
    """A descriptor of any program of the host."""
    return _checked(library().bpf_prog_get_fd_by_id(program_id), f"cannot look at program {program_id}")


def open_types(types_id: int) -> int:
    """A descriptor of any BTF of the host."""
    return _checked(library().bpf_btf_get_fd_by_id(types_id), f"cannot look at BTF {types_id}")


def program_info(program_id: int) -> ProgramInfo:
    """Name, maps and age of any program of the host."""
    descriptor = open_program(program_id)
    try:
        return info_of(descriptor)
    finally:
        os.close(descriptor)


def info_of(program: int) -> ProgramInfo:
    """The same of a program that is open."""
    ids = (ctypes.c_uint32 * 64)()
    info = structures.ProgramInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    _get_info(program, info)
    maps = tuple(ids[: min(info.nr_map_ids, len(ids))])
    return ProgramInfo(info.id, info.name.decode(errors="replace"), maps, info.load_time, info.btf_id)


def program_ids() -> Iterator[int]:
    """The ids of all programs of the host."""
    found = ctypes.c_uint32(0)
    while library().bpf_prog_get_next_id(found.value, ctypes.byref(found)) == 0:
        yield found.value


def is_linked(program_id: int) -> bool:
    """Whether a link of the host, which may be pinned, holds that program."""
    found = ctypes.c_uint32(0)
    while library().bpf_link_get_next_id(found.value, ctypes.byref(found)) == 0:
        link = library().bpf_link_get_fd_by_id(found.value)
        if link < 0:
            continue  # it went meanwhile
        try:
            info = structures.LinkInfo()
            _get_info(link, info)
            if info.prog_id == program_id:
                return True
        finally:
            os.close(link)
    return False


def map_value(map_id: int, name: str) -> bytes | None:
    """Entry 0 of the host's map `map_id`, if that map is called `name`."""
    descriptor = _checked(library().bpf_map_get_fd_by_id(map_id), f"cannot look at map {map_id}")
    try:
        info = structures.MapInfo()
        _get_info(descriptor, info)
        if info.name.decode(errors="replace") != name:
            return None
        value = ctypes.create_string_buffer(info.value_size)
        key = ctypes.c_uint32(0)
        _checked(library().bpf_map_lookup_elem(descriptor, ctypes.byref(key), value), f"cannot read map {map_id}")
        return value.raw
    finally:
        os.close(descriptor)


def test_run(program: int, packet: bytes, repeat: int = 1, context: bytes = b"") -> TestRun:
    """Run a program on a packet (at least 14 bytes) without any interface: BPF_PROG_TEST_RUN. `context` is what it
    finds in its context, as far as the kernel lets it be chosen."""
    out = ctypes.create_string_buffer(len(packet) + 256)
    options = structures.TestOptions(
        sz=ctypes.sizeof(structures.TestOptions),
        data_in=packet,
        data_size_in=len(packet),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        ctx_in=ctypes.cast(ctypes.c_char_p(context), ctypes.c_void_p) if context else None,
        ctx_size_in=len(context),
        repeat=repeat,
    )
    _checked(library().bpf_prog_test_run_opts(program, ctypes.byref(options)), "cannot run the program")
    return TestRun(options.retval, out.raw[: options.data_size_out], options.duration)


@cache
def possible_cpus() -> int:
    """CPUs that may ever come online; per-CPU memory is laid out for so many."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return int(file.read().strip().replace(",", "-").split("-")[-1]) + 1


def _load(
    name: str, instructions: bytes, kind: int, options: structures.LoadOptions, log_bytes: int
) -> tuple[int, str]:
    log = ctypes.create_string_buffer(log_bytes) if log_bytes else None
    options.sz = ctypes.sizeof(options)
    options.attempts = 5
    options.log_level = LOG_LEVEL if log else 0
    options.log_size = log_bytes
    options.log_buf = ctypes.cast(log, ctypes.c_char_p) if log else None
    result = library().bpf_prog_load(
        kind, name.encode()[:15], LICENSE, instructions, len(instructions) // 8, ctypes.byref(options)
    )
    return result, log.value.decode(errors="replace") if log else ""


def _get_info(descriptor: int, info: ctypes.Structure) -> None:
    length = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(
        library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(length)),
        "cannot ask the kernel about an object",
    )


def _checked(result: int, message: str) -> int:
    if result >= 0:
        return result
    number = -result
    raise KernelError(f"{message}: {os.strerror(number).lower()}", errno=number, help=_help(number))


def _help(number: int) -> str:
    match number:
        case errno.EPERM | errno.EACCES:
            return f"{privileges.remedy()}; `ffpf doctor` tells more"
        case errno.ENOMEM:
            return "use smaller buffers (`--buffer`), or raise the memory limit of this process"
        case errno.EMFILE | errno.ENFILE:
            return "raise the limit of open files (`ulimit -n`)"
        case errno.ENOSYS | errno.EINVAL | errno.EOPNOTSUPP:
            return "`ffpf doctor` tells what this kernel lacks"
        case _:
            return "`ffpf doctor` tells what works here"


@cache
def library() -> Any:
    """libbpf, as bcc links it. Raises FfpfError if bcc is missing."""
    try:
        from bcc.libbcc import lib  # noqa: PLC0415 - the one optional dependency that no package index has
    except ImportError:
        raise FfpfError(
            "bcc's Python library is missing",
            help="run `apt-get install python3-bpfcc`, and make the virtual environment with --system-site-packages",
        ) from None
    # libbpf prints what it thinks of errors; ours are raised.
    lib.libbpf_set_print(None)
    lib.bpf_prog_load.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.POINTER(structures.LoadOptions),
    ]
    return lib
