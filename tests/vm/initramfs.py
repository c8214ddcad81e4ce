"""The guest's first file system: busybox, the few modules that reach the host's files, and a script.

A cpio archive (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst) that is made in memory.
"""

from __future__ import annotations

import lzma
import stat
import subprocess
from pathlib import Path

from tests.vm.kernels import Kernel

BUSYBOX = Path("/bin/busybox")
MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay")
APPLETS = ("sh", "mount", "mkdir", "insmod", "switch_root", "poweroff", "cp")
ROOT_TAG = "root"
# The host's files below, read only; what the guest changes lies in memory and ends with it.
INIT = f"""#!/bin/sh
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do insmod "$module" || echo "insmod $module: $?"; done
mount -t virtiofs -o ro {ROOT_TAG} /host && mount -t tmpfs -o size=90% tmpfs /changes &&
mkdir /changes/upper /changes/work &&
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /root &&
cp /guest /root/ffpf-guest && mount -o move /dev /root/dev && exec switch_root /root /bin/sh /ffpf-guest
poweroff -f
"""


def make(kernel: Kernel, guest: str) -> bytes:
    """The archive for a kernel; `guest` is the shell script that runs on the host's file system."""
    entries: list[tuple[str, int, bytes]] = [
        (name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "host", "changes", "root", "modules")
    ]
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes()))
    entries += [(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox") for applet in APPLETS]
    for number, module in enumerate(modules(kernel)):
        entries.append((f"modules/{number:02}", stat.S_IFREG | 0o644, _unpacked(module)))
    entries.append(("init", stat.S_IFREG | 0o755, INIT.encode()))
    entries.append(("guest", stat.S_IFREG | 0o644, guest.encode()))
    return archive(entries)


def modules(kernel: Kernel) -> list[Path]:
    """The files of `MODULES` and all they need, in the order to load them; what is built in has none."""
    needs = dependencies((kernel.modules / "modules.dep").read_text())
    ordered: list[str] = []
    for name in MODULES:
        for path in needs:
            if Path(path).name.split(".")[0] == name:
                ordered += [needed for needed in (*reversed(needs[path]), path) if needed not in ordered]
    return [kernel.modules / path for path in ordered]


def dependencies(text: str) -> dict[str, list[str]]:
    """modules.dep: each module's file, and the files it needs, those nearest to it first."""
    lines = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {path: needed.split() for path, needed in lines}


def archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """Entries (path, mode, contents) as cpio."""
    out = bytearray()
    for number, (path, mode, contents) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4) + contents
        out += bytes(-len(out) % 4)
    return bytes(out)


def _unpacked(module: Path) -> bytes:
    match module.suffix:
        case ".xz":
            return lzma.decompress(module.read_bytes())
        case ".zst":
            return subprocess.run(["zstd", "-dcq", module], check=True, capture_output=True).stdout
        case _:
            return module.read_bytes()
