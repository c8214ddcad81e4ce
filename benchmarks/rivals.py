"""Rivals: those written in C by hand, compiled with clang-19 as anybody would, and programs of two instructions."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ffpf_bpf.compiler.object import Object, read
from ffpf_bpf.kernel import calls, interfaces
from ffpf_bpf.kernel.maps import Descriptor
from tests.network import Network

HANDWRITTEN = Path(__file__).parent / "handwritten"
CLANG = (
    "clang-19", "-O2", "-target", "bpf", "-mcpu=v3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter",
    "-I/usr/include/x86_64-linux-gnu",
)  # fmt: skip


def compile_c(name: str, *options: str) -> Object:
    """The object of `handwritten/NAME.c`."""
    return compile_text((HANDWRITTEN / f"{name}.c").read_text(encoding="utf-8"), *options)


def compile_text(source: str, *options: str) -> Object:
    """The object of a C text that may include what is in `handwritten/`."""
    command = [*CLANG, f"-I{HANDWRITTEN}", *options, "-xc", "-", "-c", "-o", "-"]
    return read(subprocess.run(command, input=source.encode(), check=True, stdout=subprocess.PIPE).stdout)


@contextmanager
def attached(network: Network, name: str, instructions: bytes) -> Iterator[None]:
    """An XDP program at the network's tap, in native mode."""
    with network.enter(), Descriptor(calls.load_program(name, instructions)) as program:
        index = interfaces.find(network.tap).index
        link = Descriptor(calls.attach_xdp(program.fileno, index, calls.XDP_FLAGS_DRV_MODE))
    with link:
        yield
