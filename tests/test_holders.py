"""What is said of who holds an interface."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from ffpf_bpf.errors import TapBusy
from ffpf_bpf.kernel import attachment, calls, guards, holders
from ffpf_bpf.kernel.calls import ProgramInfo
from ffpf_bpf.kernel.interfaces import Interface

DAY_NS = 86_400 * 10**9
LOOPBACK = Interface("lo", 1, 65_536, 0)


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
    later, elsewhere = replace(this, began=this.began - 1), replace(this, pids=this.pids + 1)
    assert (this.is_alive, this.is_dead) == (True, False)
    assert (later.is_alive, later.is_dead) == (False, True)
    assert (elsewhere.is_alive, elsewhere.is_dead) == (False, False), "of another PID namespace: who knows"


def test_an_owner_is_named() -> None:
    this = guards.this_process()
    assert str(this) == f"process {this.pid}"
    assert str(replace(this, pids=1)) == f"process {this.pid} of another PID namespace"
    assert str(holders.NOBODY) == "another process"


def held_by(monkeypatch: pytest.MonkeyPatch, owner: guards.Owner, *, looks: int) -> None:
    """An interface that carries an entry program of that owner, as often as it is looked at."""
    programs = [7] * looks
    monkeypatch.setattr(calls, "attached_xdp", lambda index: (programs.pop() if programs else 0, "native"))
    monkeypatch.setattr(calls, "program_info", lambda number: ProgramInfo(number, holders.ENTRY_NAME, (), 0, 0))
    monkeypatch.setattr(attachment, "owner_of", lambda map_ids: owner)


def test_what_a_process_left_is_awaited_though_another_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    this = guards.this_process()
    for left in (replace(this, began=this.began - 1), replace(this, pids=1), holders.NOBODY):
        held_by(monkeypatch, left, looks=3)
        assert attachment.refuse_if_held(LOOPBACK) is None
    held_by(monkeypatch, this, looks=3)
    with pytest.raises(TapBusy, match=f"process {this.pid} grabs from this interface already"):
        attachment.refuse_if_held(LOOPBACK)


def test_what_stays_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment, "LONGEST_FAREWELL_S", 0.0)
    held_by(monkeypatch, holders.NOBODY, looks=1_000)
    with pytest.raises(TapBusy, match="another process grabs from this interface already"):
        attachment.refuse_if_held(LOOPBACK)
