"""Functions of the kernel that programs call by number: kfuncs, found by name in the kernel's BTF."""

from __future__ import annotations

import ctypes
from functools import cache

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import calls

BTF_KIND_FUNC = 12


@cache
def number(name: str) -> int:
    """The number by which programs call a function. Raises KernelError if the kernel has none of that name."""
    find = calls.library().btf__find_by_name_kind
    find.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
    found = int(find(_types(), name.encode(), BTF_KIND_FUNC))
    if found < 0:
        raise KernelError(f"this kernel has no `{name}`", errno=-found, help="`(scan)` takes Linux 6.4 or newer")
    return found


@cache
def _types() -> int:
    """The kernel's BTF: 12 ms, and some megabytes, for a process that asks."""
    load = calls.library().btf__load_vmlinux_btf
    load.restype = ctypes.c_void_p
    types: int | None = load()
    if not types:
        raise KernelError("this kernel lists no functions", help="a kernel built with CONFIG_DEBUG_INFO_BTF")
    return types
