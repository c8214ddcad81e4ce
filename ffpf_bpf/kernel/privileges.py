"""What a process must be allowed to do to grab, and what to do if it may not. Root is not needed."""

from __future__ import annotations

import os
import platform
import re
import resource
from pathlib import Path

from ffpf_bpf.kernel.finding import Finding

NEEDED = {
    "CAP_BPF": (39, "makes maps and loads programs"),
    "CAP_NET_ADMIN": (12, "loads programs of XDP and tc, and attaches them"),
    "CAP_PERFMON": (38, "lets programs work with addresses as flows do"),
}
CAP_SYS_ADMIN = 21
INSTEAD = {"CAP_BPF": CAP_SYS_ADMIN, "CAP_PERFMON": CAP_SYS_ADMIN}  # as kernels before 5.8 had it
MEMLOCK_SINCE = (5, 11)  # maps count against the memory of their cgroup, and no more as locked memory
WHOLE_MAP = ["0", "0", "4294967295"]
AMBIENT = f"`AmbientCapabilities={' '.join(NEEDED)}` (systemd)"
SETPRIV = "`setpriv --inh-caps {0} --ambient-caps {0}`".format(
    ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in NEEDED)
)
ROOT = f"run as root, or with {', '.join(NEEDED)}: {AMBIENT} or {SETPRIV}"
MEMLOCK = "`ulimit -l unlimited`, `LimitMEMLOCK=infinity` (systemd), or CAP_SYS_RESOURCE"


def effective(root: Path = Path("/")) -> int:
    """The capabilities that this process has, a bit each."""
    status = (root / "proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.M)[1], 16)  # type: ignore[index] # proc(5)


def missing(root: Path = Path("/")) -> list[str]:
    """The capabilities that flows need and this process lacks."""
    has = effective(root)
    return [name for name, (bit, _) in NEEDED.items() if not (has >> bit | has >> INSTEAD.get(name, bit)) & 1]


def in_user_namespace(root: Path = Path("/")) -> bool:
    """Whether capabilities are those of a user namespace, which do not count for BPF."""
    return (root / "proc/self/uid_map").read_text(encoding="ascii").split() != WHOLE_MAP


def remedy() -> str:
    """What to do where the kernel did not permit something: it names what is missing."""
    if lacking := missing():
        return f"this process lacks {', '.join(lacking)}; {ROOT}"
    if in_user_namespace():
        return "this process is in a user namespace, whose capabilities do not count for BPF: run it outside"
    if has_memlock() and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return f"before Linux 5.11 maps count as locked memory, of which too little is allowed: {MEMLOCK}"
    return "it has the capabilities: a security module or a seccomp filter forbids it, as containers have them"


def examine(root: Path = Path("/")) -> Finding:
    """Whether this process may do what flows need."""
    lacking = missing(root)
    who = f"uid {os.geteuid()}"
    if lacking:
        why = "; ".join(f"{name}, which {NEEDED[name][1]}" for name in lacking)
        return Finding("privileges", False, f"{who} lacks {why}", ROOT)
    if in_user_namespace(root):
        seen = "those of a user namespace, which do not count for BPF"
        return Finding("privileges", False, seen, "run it outside of the user namespace")
    if effective(root) >> CAP_SYS_ADMIN & 1:
        return Finding("privileges", True, f"CAP_SYS_ADMIN, as {who}")
    return Finding("privileges", True, f"{', '.join(NEEDED)}, as {who}; `--netns` takes CAP_SYS_ADMIN too")


def has_memlock() -> bool:
    """Whether maps count as locked memory on this kernel."""
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return found is not None and (int(found[1]), int(found[2])) < MEMLOCK_SINCE


def raise_memlock() -> bool:
    """Allow as much locked memory as may be; whether that is more than before. For kernels on which maps count."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for limits in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (hard, hard)):
        if soft == limits[0]:
            return False
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
        except (ValueError, OSError):
            continue
        return True
    return False
