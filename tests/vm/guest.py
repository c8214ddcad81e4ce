"""What runs in the guest, on the host's file system: set up as a host would be, run a command, send back its results.

Results are files in a directory, which goes through a serial port as a tar file when the command has ended: so there
is nothing on the host to remove, however this ends.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.vm import objects
from tests.vm.kernels import Kernel

MARK = "FFPF_IN_VM"  # in the environment of what runs there
RESULTS_PORT = "results"
RESULTS = "/run/results"
EXIT_CODE, RELEASE, JUNIT, DOCTOR = "exit-code", "release", "junit.xml", "doctor.json"

BEGUN = "ffpf-vm: begun"

SCRIPT = """
echo {begun}
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export {mark}=1 {known}={objects}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /dev/pts /dev/shm {results} /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing 2> /dev/null
ln -sfn /proc/self/fd /dev/fd
mkdir -p /lib/modules
mount --bind {modules} /lib/modules
ip link set lo up
hostname ffpf-vm
cd {directory}
{commands}
echo $? > {results}/{exit_code}
uname -r > {results}/{release}
for port in /sys/class/virtio-ports/*; do
	[ "$(cat $port/name)" = {port} ] && tar -C {results} -cf /dev/${{port##*/}} .
done
exec {busybox} poweroff -f
"""


def script(kernel: Kernel, directory: Path, commands: Sequence[Sequence[str]], busybox: Path, known: Path) -> str:
    """The guest's script: `commands` one after the other in `directory`; the last one's exit code is the guest's. What
    earlier guests compiled is in `known`."""
    return SCRIPT.format(
        begun=shlex.quote(BEGUN),
        mark=MARK,
        known=objects.KNOWN,
        objects=shlex.quote(str(known)),
        results=RESULTS,
        modules=shlex.quote(str(kernel.root / "lib/modules")),
        directory=shlex.quote(str(directory)),
        commands="\n".join(shlex.join(command) for command in commands),
        exit_code=EXIT_CODE,
        release=RELEASE,
        port=RESULTS_PORT,
        busybox=busybox,
    )


def results(sent: bytes) -> dict[str, bytes]:
    """The files that a guest sent; none if it did not come so far."""
    try:
        with tarfile.open(fileobj=io.BytesIO(sent)) as file:
            opened = ((member.name.removeprefix("./"), file.extractfile(member)) for member in file.getmembers())
            return {name: stream.read() for name, stream in opened if stream is not None}
    except tarfile.ReadError:
        return {}
