"""A virtual machine from start to end: QEMU, and virtiofsd that gives it the host's files.

All three channels, initramfs, console and results, are files in memory that QEMU inherits, and the socket between both
processes has no name in a file system. Both are killed with whoever started them, by the kernel, so nothing is left
behind, whatever ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import guest, initramfs
from tests.vm.initramfs import ROOT_TAG
from tests.vm.kernels import Kernel

QEMU = "qemu-system-x86_64"
CPUS, MEMORY_MIB = 2, 2048
# x86-64-v2, which llvmlite's wheels need; emulating `max` takes 1.6 times as long.
EMULATED = ("-accel", "tcg,thread=multi", "-cpu", "Nehalem")
VIRTUAL = ("-accel", "kvm", "-cpu", "host")
# Grace periods are not expedited: while one lasts, packets come that were left to ksoftirqd, as on slow machines they are.
KERNEL_OPTIONS = "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr"
# QEMU's own up to Debian 12, Rust's since.
VIRTIOFSD = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"))


@dataclass(frozen=True, slots=True)
class Ended:
    """What is known when a machine has ended: its results, its console, and why it ended if not by itself."""

    results: dict[str, bytes]
    console: str
    hung: bool

    @property
    def booted(self) -> bool:
        """Whether its script began."""
        return guest.BEGUN in self.console

    @property
    def exit_code(self) -> int | None:
        """The guest's; None if it did not come so far."""
        return int(self.results[guest.EXIT_CODE]) if guest.EXIT_CODE in self.results else None


def missing() -> str:
    """What this host lacks to run machines; empty if nothing."""
    if platform.machine() != "x86_64":
        return "virtual machines are x86-64's only, and so is the host that runs them"
    if os.geteuid() != 0:
        return "not root, who gives a machine the host's files; `make test-vm` asks sudo"
    tools = [tool for tool in (QEMU, "setpriv", "depmod", "dpkg-deb") if shutil.which(tool) is None]
    tools += [] if initramfs.BUSYBOX.exists() else [str(initramfs.BUSYBOX)]
    tools += [] if any(path.exists() for path in VIRTIOFSD) else ["virtiofsd"]
    return f"{', '.join(tools)} not found; `make test-vm` installs what is missing" if tools else ""


def has_kvm() -> bool:
    """Whether /dev/kvm runs stock kernels: PVM's does not."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and not Path("/sys/module/kvm_pvm").exists()


async def run(kernel: Kernel, script: str, limit_s: float) -> Ended:
    """Boot `kernel` and run `script` in it. A machine that takes longer than `limit_s` is killed."""
    with _memory("initramfs") as archive, _memory("console") as console, _memory("results") as results:
        _write(archive, initramfs.make(kernel, script))
        async with _files() as connection:
            command = _qemu(kernel, archive, console, results, connection.fileno())
            descriptors = (archive, console, results, connection.fileno())
            hung = False
            async with _child(command, descriptors) as machine:
                try:
                    await asyncio.wait_for(machine.wait(), limit_s)
                except TimeoutError:
                    hung = True
        sent = guest.results(_read(results))
        return Ended(sent, _readable(_read(console)), hung)


def _qemu(kernel: Kernel, archive: int, console: int, results: int, connection: int) -> list[str]:
    return [
        QEMU,
        *(VIRTUAL if has_kvm() else EMULATED),
        *("-M", "q35,memory-backend=memory", "-m", f"{MEMORY_MIB}M", "-smp", str(CPUS)),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel.image), "-initrd", _path(archive), "-append", KERNEL_OPTIONS),
        *("-serial", f"file:{_path(console)}"),
        *("-chardev", f"socket,id=files,fd={connection}"),
        *("-device", f"vhost-user-fs-pci,chardev=files,tag={ROOT_TAG}"),
        *("-chardev", f"file,id=results,path={_path(results)}"),
        *("-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=results,name={guest.RESULTS_PORT}"),
    ]


@asynccontextmanager
async def _files() -> AsyncIterator[socket.socket]:
    """The host's file system: a connection that speaks vhost-user."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        listener.bind(f"\0ffpf-vm-{uuid.uuid4()}")
        listener.listen(1)
        connection.connect(listener.getsockname())
        async with _child(virtiofsd(listener.fileno()), (listener.fileno(),)):
            yield connection


def virtiofsd(listener: int) -> list[str]:
    """The command of whichever virtiofsd there is."""
    of_qemu, of_rust = VIRTIOFSD
    if of_qemu.exists():
        options = ("source=/", "sandbox=chroot", "cache=always", "log_level=err")
        return [str(of_qemu), f"--fd={listener}", *(word for option in options for word in ("-o", option))]
    return [
        *(str(of_rust), f"--fd={listener}", "--shared-dir=/", "--sandbox=chroot", "--cache=always"),
        "--log-level=error",
    ]


@asynccontextmanager
async def _child(command: list[str], descriptors: tuple[int, ...]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is killed at the end, and when this one dies."""
    child = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--", *command),
        pass_fds=descriptors,
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await asyncio.shield(child.wait())


@contextlib.contextmanager
def _memory(name: str) -> Iterator[int]:
    descriptor = os.memfd_create(f"ffpf-vm-{name}", 0)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _write(descriptor: int, data: bytes) -> None:
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)


def _read(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read()


def _readable(console: bytes) -> str:
    """Without what only a terminal understands."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|\r", "", console.decode(errors="replace"))
