"""An answer in time, whatever is asked: decisions end at their limit, and long lists of nets are decided on before it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

import pytest

from ffpf_bpf.authorise import Decision, Kind, Policies, Result, Rule, Subject
from ffpf_bpf.authorise.decision import OUT_OF_TIME, UNDECIDED_HELP
from ffpf_bpf.authorise.judgement import decide
from ffpf_bpf.authorise.policy import HIDDEN_BY, IGNORED_BY_DEFAULT, Allow, Network, Never, PacketClass
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.prefixes import prepare, tables
from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Depth
from ffpf_bpf.graph.parser import parse

ALICE = Subject("alice", frozenset(), 1000)
MANY = 20_000
LATE_S = 1.5  # the longest step between two looks at the time, on a slow machine too
NO_MAIL = Never(PacketClass(tcp_port=((25, 25),)), ignore=IGNORED_BY_DEFAULT)
WEB = '(bpf,"tcp port 80 and net 10.1.0.0/16") -> (snap) -> (grab)'
DIVIDED = "ether[0:4] / ether[4:4] * ether[4:4] + ether[0:4] % ether[4:4] != ether[0:4]"


def definition(flow: str) -> Definition:
    graph = build(parse(f"(device,tap0) -> {flow}"))
    return Definition(graph, compile_predicates(graph), 1 << 20)


def scattered(version: int) -> tuple[Network, ...]:
    """Nets that are no neighbours, all over 10.0.0.0/8 or 2001:db8::/32."""
    places = sorted({number * 40_503 % 65_536 for number in range(MANY)})
    if version == 4:
        return tuple(IPv4Network((10 << 24 | place << 8 | place * 7 % 16 << 4, 28)) for place in places)
    return tuple(IPv6Network((0x20010DB8 << 96 | place << 80 | place * 31 % 65_536 << 64, 64)) for place in places)


def rule(name: str, packets: PacketClass, show: Depth = Depth.HEADERS, *nevers: Never) -> Rule:
    return Rule(name, ("*",), ("*@*",), ("*",), (Allow(packets, show, HIDDEN_BY[show]),), nevers or (NO_MAIL,))


def long_lists() -> Policies:
    return Policies((rule("lists", PacketClass(net=(*scattered(4), *scattered(6)))),))


def many_rules() -> Policies:
    return Policies(
        tuple(
            rule(
                f"r{number}",
                PacketClass(net=(IPv4Network((10 << 24 | number << 8, 24)),), tcp_port=((number + 1, number + 1),)),
                Depth.ALL,
                Never(PacketClass(net=(IPv4Network((192 << 24 | number << 8, 24)),), udp_port=((number + 1,) * 2,))),
            )
            for number in range(1_500)
        )
    )


def timed(flow: str, policies: Policies, limit_s: float) -> tuple[Decision, float]:
    asked = definition(flow)
    start_s = time.process_time()  # so that others' work on the machine does not count
    decision = decide(asked, policies, ALICE, limit_s=limit_s)
    return decision, time.process_time() - start_s


def cases() -> Iterator[tuple[str, str, Policies]]:
    yield "20,000 prefixes", WEB, long_lists()
    yield "1,500 rules", WEB, many_rules()
    yield "arithmetic", f'(bpf,"{DIVIDED}") -> (snap) -> (grab)', long_lists()
    places = " and ".join(f"ether[ether[{number}] * ether[{number + 1}] & 2047] = 1" for number in range(20))
    yield "many places", f'(bpf,"{places}") -> (grab)', many_rules()


@pytest.mark.parametrize(("flow", "policies"), [pytest.param(*case[1:], id=case[0]) for case in cases()])
@pytest.mark.parametrize("limit_s", [0.05, 0.5])
def test_decisions_end_at_their_limit(flow: str, policies: Policies, limit_s: float) -> None:
    decision, took_s = timed(flow, policies, limit_s)
    assert took_s < limit_s + LATE_S
    assert not decision.accepted
    last = decision.obligations[-1]
    if last.evidence == OUT_OF_TIME:
        # What was found is kept, the one that took too long is named, and what to do is told.
        assert [each.kind for each in decision.obligations[:2]] == [Kind.MEANS, Kind.MEANS]
        assert last.result is Result.REFUSED and last.claim in decision.reasons[-1]
        assert UNDECIDED_HELP in decision.text()
        assert OUT_OF_TIME not in [each.evidence for each in decision.obligations[:-1]]


def test_out_of_time_is_told_once() -> None:
    decision, _ = timed(WEB, long_lists(), 0.05)
    assert decision.obligations[-1].evidence == OUT_OF_TIME


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", [4, 6])
def test_long_lists_are_decided_on(version: int) -> None:
    nets = scattered(version)
    policies = Policies((rule("lists", PacketClass(net=nets)),))
    start = time.process_time()
    decision, _ = timed(WEB, policies, 60)
    assert time.process_time() - start < 5
    assert [each.result for each in decision.obligations if each.kind is Kind.CONTENT] == [Result.REFUTED] * 2
    decision, _ = timed(
        f'(bpf,"tcp src port 80 and dst port 81 and src net {nets[-1]}") -> (snap) -> (grab)', policies, 60
    )
    assert decision.accepted, decision.text()


def test_tables_hold_for_addresses_in_their_nets() -> None:
    for version, bits in ((4, 32), (6, 128)):
        nets = (*scattered(version)[::40], *((IPv4Network("172.16.0.0/12"),) if version == 4 else ()))
        with t.apart():
            address = t.concat(*(t.byte(at) for at in range(bits // 8)))
            truth = t.any_of(table(address) for _, _, table in tables(nets))
            for net in nets[::20]:
                inside = int(net.network_address) | 5
                for value in (inside, inside ^ 1 << (bits - net.prefixlen), inside ^ 1 << (bits - 1)):
                    octets = value.to_bytes(bits // 8)
                    held = t.evaluate([truth], {t.byte(at): octet for at, octet in enumerate(octets)})[0]
                    assert held == any(
                        int(each.network_address) <= value <= int(each.broadcast_address) for each in nets
                    )


def test_tables_are_made_once() -> None:
    policies = long_lists()
    nets = policies.rules[0].allow[0].packets.net
    prepare(policies)
    with t.apart(time.monotonic()):  # no time: there is nothing left to make
        assert tables(nets) is tables(nets)


def test_terms_end_in_time() -> None:
    with pytest.raises(t.OutOfTime), t.apart(time.monotonic() + 0.05):
        for number in range(1 << 40):
            t.free(str(number))
    with t.apart():
        t.check_time()
        with t.apart(time.monotonic() - 1), pytest.raises(t.OutOfTime):
            t.check_time()
        t.check_time()


def test_truths_that_are_one_do_not_differ() -> None:
    assert t.differ(t.free("a"), t.free("a")) is t.FALSE
