"""The dissector of the proofs is that of AUTHORISATION.md: on frames, it says what `tests/wire.py` says, and each case
of the proofs says what all say together.

`FFPF_WIRE_CLASSES=1000` tries more packet classes.
"""

from __future__ import annotations

import os
import random
from functools import cache

import pytest

from ffpf_bpf.authorise.policy import CARRIERS as NAMES
from ffpf_bpf.authorise.policy import Allow, Never, PacketClass, Part
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.cases import Case, has_tag, tagged, untagged
from ffpf_bpf.authorise.proof.solvers import Clock, Verdict, apart, solve
from ffpf_bpf.authorise.proof.wire import Wire
from ffpf_bpf.graph.effect import Depth
from tests import wire
from tests.carriers import BEYOND, CARRIERS, ORDINARY
from tests.corpus.packets import ether, ipv4, ipv6, packets, tcp, vlan
from tests.meaning import meaning
from tests.near import near
from tests.pairs import _Chance

pytestmark = pytest.mark.slow

CLASSES = int(os.environ.get("FFPF_WIRE_CLASSES", "40"))
SEED = 29
PACKETS = 400
LONGEST = 260  # of the bytes that may be hidden, those that are looked at
NOISE = random.Random(SEED).randbytes(LONGEST)


@cache
def known() -> tuple[bytes, ...]:
    """Corpus and carriers, whole and cut everywhere in their headers."""
    whole = [case.frame for case in (*CARRIERS, *BEYOND, *ORDINARY)]
    chance = random.Random(SEED)
    cut = [frame[:length] for frame in whole for length in chance.sample(range(14, 74), 8)]
    return (*packets(SEED), *whole, *cut)


def drawn(seed: int) -> tuple[Allow, Never, list[bytes]]:
    """An allow, a never, and frames: some of those that are known, some near the two."""
    chance = _Chance(seed)
    allow, never = chance.allow(), chance.never()
    rows = near(chance.chance, [], [allow.packets, never.packets], PACKETS // 2)
    frames = [*chance.chance.choices(known(), k=PACKETS // 2), *(rows[number] for number in range(len(rows)))]
    frames += [frame[: chance.chance.randint(14, 80)] for frame in chance.chance.choices(frames, k=PACKETS // 4)]
    return allow, never, frames


@pytest.mark.parametrize("seed", range(CLASSES))
def test_classes_hold_of_the_same_frames(seed: int) -> None:
    with apart():
        allow, never, frames = drawn(seed)
        find = meaning([Wire().must(allow.packets), Wire().may(never)])
        for frame in frames:
            expected = wire.must(allow.packets, frame), wire.may(never, frame)
            assert find(frame) == expected, (allow, never, frame.hex())
            assert find(frame, NOISE) == expected, "what is not there says something"


def test_what_is_ip_is_no_arp_though_its_protocol_is_not_there() -> None:
    never = Never(PacketClass(ethertypes=(0x0806, 0x8035)), Depth.ANONYMISED, frozenset(NAMES))
    with apart():
        find = meaning([Wire().may(never)])
        for frame in (ether(0x0800, ipv4(6, tcp(1, 2)))[:20], ether(0x86DD, ipv6(44, bytes(8)))[:50]):
            assert find(frame) == (wire.may(never, frame),) == (False,)
        assert find(ether(0x0806, bytes(28))) == (True,)


@pytest.mark.parametrize("ids", [(7,), (7, 8), (7, 8, 9), (7, 8, 9, 10)])
def test_behind_two_tags_may_be_any(ids: tuple[int, ...]) -> None:
    """Where `tags` are ignored as well: then a third tag is no carrier."""
    payload = ipv4(6, tcp(1, 2))
    kind = 0x0800
    for each in reversed(ids):
        kind, payload = 0x8100, vlan(each, kind, payload)
    with apart():
        find = meaning([Wire().may(Never(PacketClass(vlan=((77, 77),)), Depth.ANONYMISED, frozenset(NAMES)))])
        assert find(ether(kind, payload)) == (len(ids) > 2,)


def test_carriers_are_the_same() -> None:
    with apart():
        found = Wire().carriers
        assert set(found) == set(NAMES)
        find = meaning(list(found.values()))
        for frame in known():
            said = {name for name, holds in zip(found, find(frame), strict=True) if holds}
            assert said == wire.carriers(frame), (frame.hex(), said ^ wire.carriers(frame))


@pytest.mark.parametrize("parts", [{Part.PAYLOAD}, {Part.ADDRESSES}, {Part.PAYLOAD, Part.ADDRESSES}])
def test_the_same_is_hidden(parts: set[Part]) -> None:
    with apart():
        dissector = Wire()
        find = meaning([dissector.hides(offset, frozenset(parts)) for offset in range(LONGEST)])
        for frame in known():
            said = {offset for offset, hides in enumerate(find(frame)[: len(frame)]) if hides}
            expected = set(range(wire.payload_start(frame), len(frame))) if Part.PAYLOAD in parts else set()
            expected |= wire.address_bytes(frame) if Part.ADDRESSES in parts else set()
            expected = {offset for offset in expected if offset < LONGEST}
            # What is behind an extension header is taken for payload, as far as filters go.
            assert said >= expected if wire.dissect(frame).has_extension else said == expected, frame.hex()


def cases() -> list[Case]:
    return [*untagged(), *tagged()]


def held(case: Case) -> t.Term:
    """That a packet is of the case."""
    return t.all_of((case.holds, *(t.equal(at, value) for at, value in case.known.items())))


class TestCases:
    def test_each_frame_is_in_one(self) -> None:
        with apart():
            find = meaning([held(case) for case in cases()])
            for frame in known():
                assert sum(find(frame)) == 1, frame.hex()
                assert sum(find(frame, NOISE)) == 1, frame.hex()

    def test_no_packet_is_in_two_or_in_none(self) -> None:
        """By the solvers, of every packet."""
        with apart():
            each = [held(case) for case in cases()]
            assert solve(t.negated(t.any_of(each)), Clock(20)).verdict is Verdict.NONE
            for number, first in enumerate(each):
                for second in each[:number]:
                    answer = solve(t.all_of((first, second)), Clock(20))
                    assert answer.verdict is Verdict.NONE
                    assert answer.confirmed

    def test_tags_are_those_of_tagged_cases(self) -> None:
        with apart():
            for cases_, truth in ((untagged(), has_tag()), (tagged(), t.negated(has_tag()))):
                for case in cases_:
                    assert solve(t.all_of((held(case), truth)), Clock(20)).verdict is Verdict.NONE

    @pytest.mark.parametrize("seed", range(100, 100 + max(CLASSES // 2, 1)))
    def test_each_says_of_its_frames_what_all_say(self, seed: int) -> None:
        with apart():
            allow, never, frames = drawn(seed)
            parts = frozenset({Part.PAYLOAD, Part.ADDRESSES})
            some = (12, 14, 26, 34, 38, 42, 54, 58, 66)

            def said(dissector: Wire) -> list[t.Term]:
                hidden = (dissector.hides(at, parts) for at in some)
                return [dissector.must(allow.packets), dissector.may(never), *hidden]

            general = meaning(said(Wire()))
            of_cases = [(meaning([held(case)]), meaning(said(case.wire))) for case in cases()]
            for frame in frames:
                (own,) = (find for here, find in of_cases if here(frame) == (1,))
                assert own(frame) == general(frame), (allow, never, frame.hex())

    @pytest.mark.parametrize("seed", range(200, 203))
    def test_each_says_of_every_packet_what_all_say(self, seed: int) -> None:
        with apart():
            allow, never, _ = drawn(seed)
            for case in cases():
                for general, own in (
                    (Wire().must(allow.packets), case.wire.must(allow.packets)),
                    (Wire().may(never), case.wire.may(never)),
                ):
                    answer = solve(t.all_of((held(case), t.differ(general, own))), Clock(30))
                    assert answer.verdict is Verdict.NONE, (allow, never, case.known, answer)
