"""Fields in Python: a condition means what a plain reading of the packet says, or is refused by name.

The rendered text is compiled by libpcap and run by the reference interpreter; the opposite is `tests/reading.py`,
which takes packets apart by hand. Frames are padded so that no load lies outside, but where that is the question.
"""

from __future__ import annotations

import copy
import operator
import pickle
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import ffpf_bpf
from ffpf_bpf import bpf, device, grab, parse, pkt, sampler, text
from ffpf_bpf.compiler.pcap import compile_filter
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.comparisons import Field, Flags
from ffpf_bpf.graph.condition import Condition, Reach
from ffpf_bpf.graph.fields import Header
from ffpf_bpf.graph.predicate import run
from tests.corpus.packets import packets
from tests.reading import Packet, Reading

SEED = 20_261
LONG_ENOUGH = 160  # the longest headers: 14 + 60 + 20
WHOLE = [frame.ljust(LONG_ENOUGH, b"\0") for frame in packets(SEED)]
SOME = WHOLE[::5]
SIGNS = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

HEADERS = {repr(value): value for value in vars(type(pkt)).values() if isinstance(value, Header)}
FIELDS: dict[str, Field] = {
    field.python: field
    for owner in (pkt, pkt.eth, *HEADERS.values())
    for field in vars(type(owner)).values()
    if isinstance(field, Field)
}


def verdicts(filter_text: str, frames: list[bytes]) -> list[bool]:
    try:
        program = compile_filter(filter_text)
    except ExpressionError as error:
        if not error.message.startswith("expression rejects all packets"):
            raise
        return [False] * len(frames)
    return [bool(run(program, frame)) for frame in frames]


def holds(packet: Packet, name: str, sign: str, value: int | str) -> bool:
    found = packet.values.get(name, ())
    if sign == "!=":
        return bool(found) and value not in found
    return any(SIGNS[sign](each, value) for each in found)


READ = {frame: Reading(frame).packet() for frame in {*WHOLE, *packets(SEED)}}
# Values that some packet has, so that a comparison parts the packets.
SEEN = {name: sorted({value for frame in WHOLE for value in READ[frame].values.get(name, ())}) for name in FIELDS}


def test_the_reading_by_hand_knows_every_field() -> None:
    assert set(FIELDS) == {name for packet in READ.values() for name in packet.values}
    assert set(HEADERS) == {name for packet in READ.values() for name in packet.headers}
    assert all(len(values) >= 2 for values in SEEN.values())


def comparisons(name: str, signs: list[str]) -> list[tuple[Condition, str, int | str]]:
    """Each sign with a low, a middle and a high value that packets have."""
    field, seen = FIELDS[name], SEEN[name]
    cases = []
    for sign in signs:
        for value in (seen[0], seen[len(seen) // 2], seen[-1]):
            if (sign, value) not in (("<", 0), (">", getattr(field, "most", None))):
                cases.append((SIGNS[sign](field, value), sign, value))
    return cases


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_comparison_means_what_the_packet_says(name: str) -> None:
    split = 0
    for condition, sign, value in comparisons(name, list(SIGNS) if FIELDS[name].ordered else ["==", "!="]):
        passed = verdicts(str(condition), SOME)
        assert passed == [holds(READ[frame], name, sign, value) for frame in SOME], (condition, str(condition))
        split += any(passed) and not all(passed)
    assert split >= 2


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_packet_that_ends_too_early_does_not_have_the_field(name: str) -> None:
    frames = packets(SEED)[::3]
    for condition, sign, value in comparisons(name, ["=="]):
        assert verdicts(str(condition), frames) == [holds(READ[frame], name, sign, value) for frame in frames]


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_a_header_alone_says_that_there_is_one(name: str) -> None:
    passed = verdicts(str(HEADERS[name]), WHOLE)
    assert passed == [name in READ[frame].headers for frame in WHOLE]
    assert verdicts(str(~HEADERS[name]), WHOLE) == [not verdict for verdict in passed]
    assert any(passed) and not all(passed)


@pytest.mark.parametrize(
    ("condition", "network"),
    [
        (pkt.ip.src.in_net("10.0.0.0/8"), "10.0.0.0/8"),
        (pkt.ip.dst.in_net(IPv4Network("10.0.0.0/30")), "10.0.0.0/30"),
        (pkt.ip.host.in_net("192.168.0.0/255.255.0.0"), "192.168.0.0/16"),
        (pkt.ip.src.in_net("0.0.0.0/0"), "0.0.0.0/0"),
        (pkt.ip.src.in_net("10.0.0.9"), "10.0.0.9/32"),
        (pkt.arp.src.in_net("192.168.0.0/16"), "192.168.0.0/16"),
        (pkt.ip6.src.in_net("2001:db8::/32"), "2001:db8::/32"),
        (pkt.ip6.host.in_net("2001:db8:8000::/33"), "2001:db8:8000::/33"),
        (pkt.ip6.dst.in_net("::/0"), "::/0"),
    ],
)
def test_in_net(condition: Condition, network: str) -> None:
    name = repr(condition).partition(".in_net")[0]
    expected = [any(ip_address(a) in ip_network(network) for a in READ[f].values.get(name, ())) for f in WHOLE]
    assert verdicts(str(condition), WHOLE) == expected
    assert any(expected) and not all(expected)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_isin(name: str) -> None:
    some = [*SEEN[name][:3], *SEEN[name][-2:], SEEN[name][0]]
    condition = FIELDS[name].isin(reversed(some))
    assert verdicts(str(condition), SOME) == [any(holds(READ[f], name, "==", v) for v in some) for f in SOME]
    assert str(FIELDS[name].isin(set(some))) == str(condition), "the order of a set is not seen"


@pytest.mark.parametrize(("field", "names"), [(pkt.tcp.flags, ("syn", "ack")), (pkt.tcp.flags, ("psh",)), (pkt.ip.flags, ("df",)), (pkt.ip.flags, ("df", "mf"))])  # fmt: skip
def test_flags(field: Flags, names: tuple[str, ...]) -> None:
    mask = sum(dict(field.names)[name] for name in names)
    values = [READ[frame].values.get(field.python, ()) for frame in WHOLE]
    assert verdicts(str(field.has(*names)), WHOLE) == [any(v & mask == mask for v in value) for value in values]
    assert verdicts(str(field.lacks(*names)), WHOLE) == [any(v & mask == 0 for v in value) for value in values]


def test_fields_of_one_header_are_compared_with_each_other() -> None:
    pairs = [(pkt.tcp.sport, pkt.tcp.dport), (pkt.udp.dport, pkt.udp.sport), (pkt.ip.src, pkt.ip.dst), (pkt.ip.len, pkt.ip.id)]  # fmt: skip
    pairs += [(pkt.ip6.src, pkt.ip6.dst), (pkt.eth.src, pkt.eth.dst), (pkt.arp.src, pkt.arp.dst), (pkt.tcp.seq, pkt.tcp.ack)]  # fmt: skip
    for a, b in pairs:
        for sign in SIGNS if a.ordered else ("==", "!="):
            left, right = ([READ[frame].values.get(field.python, ()) for frame in WHOLE] for field in (a, b))
            expected = [bool(x and y) and SIGNS[sign](x[0], y[0]) for x, y in zip(left, right, strict=True)]
            assert verdicts(str(SIGNS[sign](a, b)), WHOLE) == expected, (a, sign, b)


@st.composite
def leaves(draw: st.DrawFn) -> tuple[Condition, tuple[bool, ...]]:
    """A condition, and what the packets themselves say of it."""
    name = draw(st.sampled_from(sorted([*FIELDS, *HEADERS])))
    if name in HEADERS:
        return HEADERS[name], tuple(name in READ[frame].headers for frame in SOME)
    condition, sign, value = draw(
        st.sampled_from(comparisons(name, ["==", "!=", "<", ">="][: 2 + 2 * FIELDS[name].ordered]))
    )
    return condition, tuple(holds(READ[frame], name, sign, value) for frame in SOME)


def combined(parts: tuple[str, tuple[Condition, tuple[bool, ...]], tuple[Condition, tuple[bool, ...]]]):
    sign, (a, of_a), (b, of_b) = parts
    if sign == "&" and Reach.TAG | Reach.HEADERS in a.reach | b.reach:
        sign = "|"
    if sign == "&":
        return a & b, tuple(map(operator.and_, of_a, of_b))
    return a | b, tuple(map(operator.or_, of_a, of_b))


COMBINATIONS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("&|"), inner, inner).map(combined),
        inner.map(lambda part: (~part[0], tuple(not verdict for verdict in part[1]))),
    ),
    max_leaves=12,
)


@seed(SEED)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(COMBINATIONS)
def test_a_combination_means_the_combination_of_its_parts(combination: tuple[Condition, tuple[bool, ...]]) -> None:
    condition, expected = combination
    assert tuple(verdicts(str(condition), SOME)) == expected, str(condition)
    assert str(eval(repr(condition), {"pkt": pkt})) == str(condition), "it is shown as it can be written"


@pytest.mark.parametrize(
    ("condition", "rendered"),
    [
        (pkt.tcp.dport == 443, "tcp dst port 443"),
        (443 == pkt.udp.sport, "udp src port 443"),  # noqa: SIM300
        (pkt.tcp.dport == np.int64(443), "tcp dst port 443"),
        (pkt.tcp.dport != 443, "tcp dst portrange 0-65535 and not tcp dst port 443"),
        (pkt.tcp.port < 1024, "tcp portrange 0-1023"),
        (1024 <= pkt.sctp.sport, "sctp src portrange 1024-65535"),  # noqa: SIM300
        (pkt.tcp.dport > 65534, "tcp dst port 65535"),
        (pkt.tcp.port.isin({8001, 443, 8000}), "tcp port 443 or tcp portrange 8000-8001"),
        (pkt.udp.dport.isin(range(33434, 33524)), "udp dst portrange 33434-33523"),
        (pkt.udp.len > 100, "udp[4:2] > 100 or (ip6[6] = 17 and ip6[44:2] > 100)"),
        (pkt.tcp.flags.has("syn", "ack"), "tcp[13] & 0x12 = 0x12 or (ip6[6] = 6 and ip6[53] & 0x12 = 0x12)"),
        (pkt.ip.src == IPv4Address("10.0.0.1"), "ip src host 10.0.0.1"),
        (pkt.ip.src != "10.0.0.1", "ip and not ip src host 10.0.0.1"),
        (pkt.ip6.host == "2001:DB8:0::1", "ip6 host 2001:db8::1"),
        (pkt.eth.dst != "00-11-22-33-44-AA", "not ether dst host 00:11:22:33:44:aa"),
        (pkt.eth.type == 0x86DD, "ether[12:2] = 0x86dd"),
        (pkt.icmp.type == 8, "icmp[icmptype] = 8"),
        (pkt.len >= 1000, "len >= 1000"),
        (~pkt.tcp & pkt.ip, "not tcp and ip"),
        (~(pkt.ip.ttl < 5), "not (ip[8] < 5)"),
        (pkt.tcp & pkt.ip | pkt.udp, "(tcp and ip) or udp"),
        (pkt.tcp | pkt.ip & pkt.udp, "tcp or (ip and udp)"),
        (pkt.arp | pkt.tcp | pkt.udp, "arp or tcp or udp"),
        (~(pkt.tcp | pkt.udp), "not (tcp or udp)"),
    ],
    ids=repr,
)  # fmt: skip
def test_the_text_is_what_a_person_would_write(condition: Condition, rendered: str) -> None:
    assert str(condition) == rendered
    assert eval(repr(condition), {"pkt": pkt}) == condition


@pytest.mark.parametrize("condition", [pkt.tcp.dport == 80, pkt.tcp.flags.has("syn"), pkt.ip6.src != "2001:db8::9", pkt.icmp | pkt.arp], ids=repr)  # fmt: skip
def test_behind_a_tag_with_the_word_of_pcap(condition: Condition) -> None:
    untagged = [frame for frame in WHOLE if not READ[frame].headers & {"pkt.vlan"}]
    tagged = [frame[:12] + b"\x81\x00\x00\x05" + frame[12:] for frame in untagged]
    assert verdicts(f"vlan 5 and ({condition})", tagged) == verdicts(str(condition), untagged)
    assert not any(verdicts(f"vlan 6 and ({condition})", tagged))
    both = f"vlan 5 and ({pkt.vlan.id == 5})"
    assert all(verdicts(both, tagged)), "a condition on the tag is not shifted by pcap's `vlan`"


def test_conditions_are_nodes_where_a_flow_expression_is_expected() -> None:
    web, dns = pkt.tcp.dport == 443, pkt.udp.dport == 53
    assert text(device("eth0") >> web >> grab()) == '(device,eth0) -> (bpf,"tcp dst port 443") -> (grab)'
    assert text(device("eth0") >> (web | dns)) == '(device,eth0) -> (bpf,"tcp dst port 443 or udp dst port 53")'
    assert text(web >> dns >> grab()) == '(bpf,"tcp dst port 443") -> (bpf,"udp dst port 53") -> (grab)'
    assert text(web & bpf("ip")) == '(bpf,"tcp dst port 443") & (bpf,ip)'
    assert text(bpf("ip") | ~web) == '(bpf,ip) | (bpf,"not tcp dst port 443")'
    assert text((web >> grab()) | (dns >> sampler(10))) == (
        '((bpf,"tcp dst port 443") -> (grab)) | ((bpf,"udp dst port 53") -> (sampler,10))'
    )
    assert bpf(web, name="web") == bpf("tcp dst port 443", name="web")
    assert ffpf_bpf.Flow.create().populate(device("eth0") >> pkt.tcp).state is ffpf_bpf.State.POPULATED
    assert parse(text(device("eth0") >> web)) == device("eth0") >> web


def test_conditions_are_values() -> None:
    assert {pkt.tcp.dport == 80, pkt.tcp.dport == 80, pkt.tcp, pkt.tcp} == {pkt.tcp, pkt.tcp.dport == 80}
    assert (pkt.tcp.dport == 80) != (pkt.tcp.dport == 81)
    with pytest.raises(TypeError, match="unhashable"):
        {pkt.tcp.dport}  # noqa: B018


@pytest.mark.parametrize("owner", [pkt, pkt.eth, pkt.tcp, pkt.vlan, pkt.tcp.dport, pkt.ip.src], ids=repr)
def test_a_name_that_is_not_there_is_an_attribute_error_too(owner: object) -> None:
    assert not hasattr(owner, "foo")
    assert getattr(owner, "foo", None) is None
    for error in (AttributeError, ExpressionError):
        with pytest.raises(error):
            owner.foo  # type: ignore[attr-defined]  # noqa: B018
    assert repr(copy.deepcopy(owner)) == repr(owner)
    assert repr(pickle.loads(pickle.dumps(owner))) == repr(owner)


@pytest.mark.parametrize("field", [pkt.tcp.dport, pkt.ip.src, pkt.tcp, pkt.tcp.dport == 80], ids=repr)
def test_python_cannot_calculate_with_what_is_of_packets_yet_to_come(field: Field | Condition) -> None:
    operations = ["x + 1", "1 + x", "x - 1", "1 - x", "x * 2", "x / 2", "x // 2", "x % 2", "2 % x", "x ** 2", "x << 1"]
    operations += ["x ^ 1", "-x", "+x", "abs(x)", "int(x)", "float(x)", "divmod(x, 2)", "1 >> x", "x + x"]
    for operation in operations:
        with pytest.raises(ExpressionError) as error:
            eval(operation, {"x": field})
        assert error.value.message == f"`{field!r}` is of packets yet to come, so Python cannot calculate with it"
        assert "`pkt.tcp.dport == 8000 + 80`" in error.value.help


PARENTHESES = "put parentheses around each comparison, as in `(pkt.tcp.dport == 443) & (pkt.ip.ttl < 5)`"
NO_CONDITION = "`pkt.tcp.dport` is a field, and no condition before it is compared"
TRUTH = (
    "use `&`, `|` and `~` for `and`, `or` and `not`, `.isin([...])` for `in`, two comparisons for `1 < x < 5`; "
    'it goes into a flow, as in `device("eth0") >> (pkt.tcp.dport == 443) >> grab()`'
)
PAYLOAD = 'bytes are for text, as in `bpf("udp[8:2] = 0x1234")`, or for Python, once grabbed'
LIKE = 'fields compare with their like in the same header; more is for text, as in `bpf("ip[2:2] > len")`'
BEHIND = 'pcap\'s own `vlan` reads behind the tag, as in `bpf(f"vlan 5 and ({condition})")`'
BYTE, PORT = "it is a whole number from 0 to 255", "it is a whole number from 0 to 65535"
NUMBER = "no name is looked up; write the number, as in `pkt.tcp.dport == 443`"
ADDRESS = 'no name is resolved; write the address, as in `pkt.ip.src == "10.0.0.1"`'
NETWORK = 'no name is resolved; write it as in `pkt.ip.src.in_net("10.0.0.0/8")`'
MAC = 'write `pkt.eth.src == "00:11:22:33:44:55"`'
FLAGS = "one or more of fin, syn, rst, push, psh, ack, urg, ece, cwr"
HAS = "use `pkt.tcp.flags.has` or `.lacks`, as in `pkt.tcp.flags.has('fin')`"
REFUSED = [
    ("pkt.tcp.foo", "`pkt.tcp` has no `foo`", "its fields are sport, dport, port, seq, ack, flags, window"),
    ("pkt.tcp.dst_port == 80", "`pkt.tcp` has no `dst_port`", "did you mean `pkt.tcp.sport` or `pkt.tcp.dport`?"),
    ("pkt.udp.Len", "`pkt.udp` has no `Len`", "did you mean `pkt.udp.len`?"),
    ("pkt.http", "`pkt` has no `http`", "its fields are len, eth, vlan, arp, ip, ip6, tcp, udp, sctp, icmp, icmp6"),
    ("pkt.ipv6", "`pkt` has no `ipv6`", "did you mean `pkt.ip6` or `pkt.ip`?"),
    ("pkt.eth.vendor", "`pkt.eth` has no `vendor`", "its fields are src, dst, host, type"),
    ("pkt.tcp.dport.is_in([80])", "`pkt.tcp.dport` has no `is_in`", "did you mean `pkt.tcp.dport.isin`?"),
    ("pkt.ip.src.lower()", "`pkt.ip.src` has no `lower`", 'compare it, as in `pkt.ip.src == "10.0.0.1"`'),
    ("pkt.tcp > 5", "`pkt.tcp` is a condition on packets, not a value: got 5", "compare a field, as in `pkt.ip.ttl < 5`"),
    ("5 >= (pkt.ip.ttl == 5)", "`pkt.ip.ttl == 5` is a condition on packets, not a value: got 5", "compare a field, as in `pkt.ip.ttl < 5`"),
    ("not pkt.tcp", "`pkt.tcp` is a condition on packets, neither true nor false", TRUTH),
    ("(pkt.tcp.dport == 1) and pkt.tcp", "`pkt.tcp.dport == 1` is a condition on packets, neither true nor false", TRUTH),
    ("1 < pkt.ip.ttl < 5", "`pkt.ip.ttl > 1` is a condition on packets, neither true nor false", TRUTH),
    ("pkt.tcp.dport in [80]", "`pkt.tcp.dport == 80` is a condition on packets, neither true nor false", TRUTH),
    ("bool(pkt.tcp.dport)", NO_CONDITION, PARENTHESES),
    ("~pkt.tcp.dport", NO_CONDITION, PARENTHESES),
    ("bpf(pkt.tcp.dport)", NO_CONDITION, PARENTHESES),
    ('device("eth0") >> pkt.tcp.dport == 443', NO_CONDITION, PARENTHESES),
    ("pkt.ip.ttl == 5 & pkt.tcp.dport == 443", NO_CONDITION, PARENTHESES),
    ("pkt.tcp.dport | pkt.udp", NO_CONDITION, PARENTHESES),
    ("pkt.tcp.dport == 443 & pkt.udp", "`&` joins conditions and flow expressions, got 443", PARENTHESES),
    ("pkt.udp & pkt.tcp.dport == 443", "`&` joins conditions and flow expressions, got pkt.tcp.dport", PARENTHESES),
    ("pkt.udp | True", "`|` joins conditions and flow expressions, got True", PARENTHESES),
    ('"udp" | pkt.tcp', "`|` joins conditions and flow expressions, got 'udp'", PARENTHESES),
    ("pkt.tcp.dport == 70000", "`pkt.tcp.dport` is never 70000", PORT),
    ("pkt.tcp.dport.isin([80, -1])", "`pkt.tcp.dport` is never -1", PORT),
    ("pkt.tcp.dport.isin(range(10**9))", "`pkt.tcp.dport` is never 999999999", PORT),
    ("pkt.ip.ttl == 256", "`pkt.ip.ttl` is never 256", BYTE),
    ("pkt.ip.ttl < 0", "no `pkt.ip.ttl` is below 0", BYTE),
    ("pkt.ip.ttl > 255", "no `pkt.ip.ttl` is above 255", BYTE),
    ("pkt.tcp.dport == 'https'", "`pkt.tcp.dport` compares with a whole number, got 'https'", NUMBER),
    ("pkt.tcp.dport == 443.0", "`pkt.tcp.dport` compares with a whole number, got 443.0", NUMBER),
    ("pkt.tcp.dport == True", "`pkt.tcp.dport` compares with a whole number, got True", NUMBER),
    ("pkt.tcp.dport == None", "`pkt.tcp.dport` compares with a whole number, got None", NUMBER),
    ("pkt.tcp.dport == pkt.udp", "`pkt.tcp.dport` compares with a whole number, got pkt.udp", NUMBER),
    ("pkt.tcp.dport.isin('80')", "`pkt.tcp.dport.isin` takes a list, got '80'", "write `pkt.tcp.dport.isin([443])`"),
    ("pkt.ip.ttl.isin(5)", "`pkt.ip.ttl.isin` takes a list, got 5", "write `pkt.ip.ttl.isin([1])`"),
    ("pkt.ip.src.isin([])", "`pkt.ip.src.isin` has no value to compare with", "an empty list passes no packet"),
    ("pkt.tcp.dport.in_net('10.0.0.0/8')", "`pkt.tcp.dport` is no IP address, so it is in no network", "compare it, as in `pkt.tcp.dport == 443`"),
    ("pkt.ip.src < '10.0.0.1'", "`pkt.ip.src` has no order, so `<` cannot compare it", 'use `==`, `!=` or `.isin`, as in `pkt.ip.src == "10.0.0.1"`'),
    ("pkt.tcp.flags >= 2", "`pkt.tcp.flags` has no order, so `>=` cannot compare it", HAS),
    ("pkt.tcp.flags.syn", "`pkt.tcp.flags` has no `syn`", HAS),
    ("pkt.tcp.flags == 'syn'", "`pkt.tcp.flags` compares with a whole number, got 'syn'", HAS),
    ("pkt.tcp.flags & 2 != 0", "`pkt.tcp.flags` is a field, and no condition before it is compared", HAS),
    ("pkt.ip.flags | pkt.udp", "`pkt.ip.flags` is a field, and no condition before it is compared", "use `pkt.ip.flags.has` or `.lacks`, as in `pkt.ip.flags.has('mf')`"),
    ("pkt.tcp.flags.has('SYN')", "`pkt.tcp.flags` has no flag 'SYN'", FLAGS),
    ("pkt.tcp.flags.lacks()", "`pkt.tcp.flags.lacks()` names no flag", FLAGS),
    ("pkt.ip.src == 'example.org'", "`pkt.ip.src` compares with an IPv4 address, got 'example.org'", ADDRESS),
    ("pkt.ip.src == 167772161", "`pkt.ip.src` compares with an IPv4 address, got 167772161", ADDRESS),
    ("pkt.ip.src == '10.0.0.0/8'", "`10.0.0.0/8` is no single address", "for a network write `pkt.ip.src.in_net('10.0.0.0/8')`"),
    ("pkt.ip.src == '2001:db8::1'", "`2001:db8::1` is of IPv6, and `pkt.ip.src` of IPv4", "use `pkt.ip6.src`"),
    ("pkt.ip6.dst.in_net('10.0.0.0/8')", "`10.0.0.0/8` is of IPv4, and `pkt.ip6.dst` of IPv6", "use `pkt.ip.dst`"),
    ("pkt.arp.src == '::1'", "`::1` is of IPv6, and `pkt.arp.src` of IPv4", 'write `pkt.arp.src == "10.0.0.1"`'),
    ("pkt.ip6.src == 'fe80::1%eth0'", "`pkt.ip6.src` compares with an IPv6 address, got 'fe80::1%eth0'", 'no name is resolved; write the address, as in `pkt.ip6.src == "2001:db8::1"`'),
    ("pkt.ip.src.in_net('10.0.0.1/8')", "`10.0.0.1/8` has bits behind its prefix", "the network is `10.0.0.0/8`"),
    ("pkt.ip.src.in_net('10.0.0.0/99')", "`pkt.ip.src.in_net` takes an IPv4 network, got '10.0.0.0/99'", NETWORK),
    ("pkt.eth.src == '00:11:22:33:44'", "`pkt.eth.src` compares with an Ethernet address, got '00:11:22:33:44'", MAC),
    ("pkt.tcp.sport == pkt.udp.sport", "`pkt.tcp.sport` cannot be compared with `pkt.udp.sport`", LIKE),
    ("pkt.ip.src == pkt.ip.ttl", "`pkt.ip.src` cannot be compared with `pkt.ip.ttl`", LIKE),
    ("pkt.tcp.sport == pkt.tcp.port", "`pkt.tcp.port` is either of two fields, so no field is compared with it", "name one of both"),
    ("pkt.ip == '10.0.0.1'", "`pkt.ip` is a header, not a value: got '10.0.0.1'", "compare one of its fields"),
    ("pkt.payload", "`pkt.payload` is no field: conditions are on fields of headers", PAYLOAD),
    ("pkt.udp.payload", "`pkt.udp.payload` is no field: conditions are on fields of headers", PAYLOAD),
    ("pkt.udp[8:10] == 3", "`pkt.udp[...]` is no field: conditions are on fields of headers", PAYLOAD),
    ("(pkt.vlan.id == 5) & pkt.tcp", "`pkt.vlan.id == 5` is about a VLAN tag, and `pkt.tcp` about packets without one", BEHIND),
    ("(pkt.ip | pkt.ip6) & (pkt.len > 60) & ~pkt.vlan", "`~pkt.vlan` is about a VLAN tag, and `(pkt.ip | pkt.ip6) & (pkt.len > 60)` about packets without one", BEHIND),
    ("(pkt.tcp.dport.isin(range(0, 65535, 3))) >> grab()", "a filter of 476,880 bytes", "at most 16,384 bytes of text; split it into several nodes with `|`"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "message", "help_text"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_be_a_filter_is_refused_by_name(written: str, message: str, help_text: str) -> None:
    with pytest.raises(ExpressionError) as error:
        eval(written, vars(ffpf_bpf).copy())
    assert (error.value.message, error.value.help) == (message, help_text)
