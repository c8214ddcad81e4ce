"""Who holds an interface at XDP, where there is room for one program: said in a sentence, and never evicted."""

from __future__ import annotations

import time

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import calls
from ffpf_bpf.kernel.guards import Owner, this_process
from ffpf_bpf.kernel.maps import MappedArray

DISPATCHER, ENTRY_NAME, TAP_MAP = "xdp_dispatcher", "ffpf_entry", "ffpf_tap"
PID_OFFSET, BEGAN_OFFSET, PIDS_OFFSET, MONITOR_OFFSET = 4, 24, 32, 36  # struct ffpf_tap
NOBODY = Owner(0, 0, 0)


def described(info: calls.ProgramInfo, mode: str) -> str:
    """A program, as in: `xdpfilt_alw_all` (id 45, native, since 02:31)."""
    loaded = f", since {since(info.loaded_ns)}" if info.loaded_ns else ""
    return f"`{info.name}` (id {info.id}, {mode}{loaded})"


def since(loaded_ns: int) -> str:
    """When a program was loaded, by this host's clock: the time of day, in front of it the day if it is another."""
    age_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - loaded_ns) / 1e9
    loaded, now = time.localtime(time.time() - age_s), time.localtime()
    today = (loaded.tm_year, loaded.tm_yday) == (now.tm_year, now.tm_yday)
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", loaded)


def own_tap(control: MappedArray) -> None:
    """Write into a tap's map that it is this process's."""
    owner = this_process()
    for offset, number, size in (
        (PID_OFFSET, owner.pid, 4),
        (BEGAN_OFFSET, owner.began, 8),
        (PIDS_OFFSET, owner.pids, 4),
    ):
        control.memory[offset : offset + size] = number.to_bytes(size, "little")


def owner_of(map_ids: tuple[int, ...]) -> Owner:
    """The process that holds the tap whose entry program uses these maps; NOBODY if it cannot be found.

    The tap's map is the first that the program uses. The others stay closed: opening a prog array whose owner is dying
    makes the kernel keep it for ever (prog_array_map_clear).
    """
    head = _head(map_ids)
    if head is None:
        return NOBODY
    words = ((PIDS_OFFSET, 4), (PID_OFFSET, 4), (BEGAN_OFFSET, 8))
    return Owner(*(int.from_bytes(head[offset : offset + size], "little") for offset, size in words))


def is_monitor(map_ids: tuple[int, ...]) -> bool:
    """Whether frames end at the tap whose entry program uses these maps."""
    head = _head(map_ids)
    return head is not None and any(head[MONITOR_OFFSET : MONITOR_OFFSET + 4])


def _head(map_ids: tuple[int, ...]) -> bytes | None:
    try:
        return calls.map_value(map_ids[0], TAP_MAP) if map_ids else None
    except KernelError:
        return None
