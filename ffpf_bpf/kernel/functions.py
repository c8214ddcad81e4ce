"""Functions by name in BTF: those of the kernel that programs call by number (kfuncs), and those of programs."""

from __future__ import annotations

import ctypes
from functools import cache

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import calls

BTF_KIND_FUNC = 12


@cache
def number(name: str) -> int:
    """The number by which programs call a function. Raises KernelError if the kernel has none of that name."""
    found = _find(_types(), name)
    if found < 0:
        raise KernelError(f"this kernel has no `{name}`", errno=-found, help="`(scan)` takes Linux 6.4 or newer")
    return found


def number_in(types_id: int, name: str) -> int:
    """The number of a function in any BTF of the host; 0 if it has none of that name, or is not there."""
    library = calls.library()
    library.btf__load_from_kernel_by_id.restype = ctypes.c_void_p
    library.btf__free.argtypes = (ctypes.c_void_p,)
    types = library.btf__load_from_kernel_by_id(types_id)
    if not types:
        return 0
    try:
        return max(0, _find(types, name))
    finally:
        library.btf__free(types)


def _find(types: int, name: str) -> int:
    find = calls.library().btf__find_by_name_kind
    find.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
    return int(find(types, name.encode(), BTF_KIND_FUNC))


@cache
def _types() -> int:
    """The kernel's BTF: 12 ms, and some megabytes, for a process that asks."""
    load = calls.library().btf__load_vmlinux_btf
    load.restype = ctypes.c_void_p
    types: int | None = load()
    if not types:
        raise KernelError("this kernel lists no functions", help="a kernel built with CONFIG_DEBUG_INFO_BTF")
    return types
