"""What is said of who holds an interface."""

from __future__ import annotations

import re
import time

from ffpf_bpf.kernel import guards, holders
from ffpf_bpf.kernel.calls import ProgramInfo

DAY_NS = 86_400 * 10**9


def test_a_holder_is_named_with_id_mode_and_age() -> None:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    before, said, after = (
        time.strftime("%H:%M"),
        holders.described(ProgramInfo(45, "xdp_filter", (), now_ns, 0), "native"),
        time.strftime("%H:%M"),
    )
    assert said in {f"`xdp_filter` (id 45, native, since {clock})" for clock in (before, after)}


def test_of_another_day_the_day_is_said() -> None:
    said = holders.since(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 3 * DAY_NS)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", said)


def test_an_owner_is_told_from_who_has_its_number_later() -> None:
    this = guards.this_process()
    assert not this.is_dead
    assert guards.Owner(this.pids, this.pid, this.began - 1).is_dead
    assert not guards.Owner(this.pids + 1, this.pid, this.began - 1).is_dead, "of another PID namespace: who knows"
