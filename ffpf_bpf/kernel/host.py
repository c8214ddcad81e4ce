"""Settings of this host that have a say in BPF, read from /proc and /sys: part of `ffpf doctor`."""

from __future__ import annotations

import re
from pathlib import Path

from ffpf_bpf.kernel.finding import Finding

JIT = "proc/sys/net/core/bpf_jit_enable"
UNPRIVILEGED = "proc/sys/kernel/unprivileged_bpf_disabled"
LOCKDOWN = "sys/kernel/security/lockdown"
HIDDEN = "not visible: `ip netns exec` mounts another /sys"
PINNED = "of flows only components of libxdp's dispatcher are pinned there"


def examine(root: Path = Path("/")) -> list[Finding]:
    """What is set, and what that means for flows."""
    return [_jit(root), _unprivileged(root), _lockdown(root), _bpf_files(root)]


def _jit(root: Path) -> Finding:
    path = root / JIT
    try:
        enabled = path.read_text(encoding="ascii").strip() != "0"
    except PermissionError:
        return Finding("JIT", True, "not readable without root")
    except OSError:
        return Finding("JIT", True, "not visible in this network namespace, or always on")
    off = "off: programs run several times slower, and those that call functions are refused"
    return Finding("JIT", enabled, "on" if enabled else off, f"echo 1 > /{JIT}")


def _unprivileged(root: Path) -> Finding:
    """Flows have CAP_BPF, to which it does not apply (Documentation/admin-guide/sysctl/kernel.rst)."""
    name = "unprivileged BPF"
    try:
        setting = (root / UNPRIVILEGED).read_text(encoding="ascii").strip()
    except OSError:
        return Finding(name, True, "not known; flows take CAP_BPF anyway", needed=False)
    said = {"0": "allowed", "1": "disabled for good", "2": "disabled"}.get(setting, setting)
    return Finding(name, True, f"{said} ({setting}); flows take CAP_BPF anyway", needed=False)


def _lockdown(root: Path) -> Finding:
    """Lockdown keeps programs from reading kernel memory and writing that of processes (security/lockdown): flows do
    neither, so they load in every mode."""
    name = "kernel lockdown"
    try:
        mode = re.search(r"\[(\w+)\]", (root / LOCKDOWN).read_text(encoding="ascii"))
    except PermissionError:
        return Finding(name, True, "not readable without root", needed=False)
    except OSError:
        is_hidden = not (root / LOCKDOWN).parent.is_dir() or not any((root / LOCKDOWN).parent.iterdir())
        return Finding(name, True, HIDDEN if is_hidden else "this kernel has none", needed=False)
    word = mode[1] if mode else "unknown"
    says = "off" if word == "none" else f"{word}: it forbids reads of kernel memory, which flows do not make"
    return Finding(name, True, says, needed=False)


def _bpf_files(root: Path) -> Finding:
    """Where the kernel's pins are, if it is mounted."""
    name = "bpffs"
    mounts = (root / "proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    places = [fields[1] for line in mounts if len(fields := line.split()) > 2 and fields[2] == "bpf"]
    if places:
        return Finding(name, True, f"mounted at {places[0]}; {PINNED}", needed=False)
    sources = [fields[0] for line in mounts if (fields := line.split())[1:3] == ["/sys", "sysfs"]]
    why = "" if sources[-1:] in ([], ["sysfs"], ["none"]) else ": `ip netns exec`, which names /sys after it, hides it"
    return Finding(name, True, f"not mounted{why}; {PINNED}", needed=False)
