"""`anonymise`: the kernel's records byte for byte against plain Python, and nothing of the original anywhere in them."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError, FfpfError
from ffpf_bpf.flow import Flow
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.anonymise import ENTRY_BYTES, FIXED_BYTES, Anonymise
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.printer import python, text
from tests.anonymisation import address_pseudonym, anonymised, checksum, number, port_pseudonym, random_frames, siphash
from tests.corpus import packets as corpus
from tests.corpus.packets import arp, ether, ipv4, ipv6, sctp, tcp, udp
from tests.network import Network
from tests.segment import LoadedFlow, loaded

SEED = 2012
KEY = bytes(range(16))
OTHER_KEY = bytes(range(100, 116))
NO_CACHE = FIXED_BYTES + ENTRY_BYTES  # one entry, which the next address takes


def node(ports: bool = False, key: bytes = KEY, mbuf_bytes: int = 0) -> str:
    words = f"{'ports ' if ports else ''}key={key.hex()}"
    return f'(anonymise,"{words}"{f",{mbuf_bytes}" if mbuf_bytes else ""})'


def flow_text(*stages: str, snaplen: int = 256) -> str:
    return " -> ".join(("(device,tap0)", *stages, f"(grab,snaplen={snaplen})"))


def shown(flow: LoadedFlow, frame: bytes) -> bytes:
    """The record's data."""
    assert flow.run(frame) == frame, "the packet was changed"
    return last(flow, frame)


def last(flow: LoadedFlow, frame: bytes) -> bytes:
    (packet,) = [packet for batch in flow.batches() for packet in batch.packets(("tap0",))]
    assert packet.length == len(frame)
    return packet.data


def test_siphash_gives_the_known_answers() -> None:
    assert siphash(KEY, bytes(range(15))) == 0xA129CA6149BE45E5  # the paper, appendix A
    vectors = {0: "310e0edd47db6f72", 1: "fd67dc93c539f874", 8: "6224939a79f5f593", 16: "db9bc2577fcc2a3f"}
    for length, answer in vectors.items():  # vectors.h of the reference implementation
        assert siphash(KEY, bytes(range(length))).to_bytes(8, "little") == bytes.fromhex(answer)


@pytest.mark.parametrize(
    ("written", "made", "printed", "hidden"),
    [
        ("(anonymise)", Anonymise(), "(anonymise)", "(anonymise)"),
        ("(Anonymise,ports)", Anonymise(True), "(anonymise,ports)", "(anonymise,ports)"),
        (f"(anonymise,key={KEY.hex().upper()})", Anonymise(key=KEY), f"(anonymise,key={KEY.hex()})", "(anonymise,key=hidden)"),
        (f'(anonymise as a,"key={KEY.hex()} ports",400)', Anonymise(True, KEY, name="a", mbuf_bytes=400),
         f'(anonymise as a,"ports key={KEY.hex()}",400)', '(anonymise as a,"ports key=hidden",400)'),
    ],
)  # fmt: skip
def test_text_and_python(written: str, made: Anonymise, printed: str, hidden: str) -> None:
    node = parse(written)
    assert node == made == parse(printed) == eval(python(made), {"anonymise": Anonymise})
    assert (text(node), text(node, hidden=True)) == (printed, hidden)
    assert KEY.hex() not in repr(made)
    assert str(KEY) not in repr(made)


KEYS_HELP = "leave `key=` out for a random one"
WORDS_HELP = "`(anonymise)`, `(anonymise,ports)`, or with a key of 32 hex digits `(anonymise,key=...)`"


@pytest.mark.parametrize(
    ("written", "message", "help"),
    [
        ("(anonymise,port)", "`port` is no option", WORDS_HELP),
        ('(anonymise,"ports ports")', "`ports` stands twice", WORDS_HELP),
        ("(anonymise,salt=1)", "`salt=` is unknown", WORDS_HELP),
        (f'(anonymise,"key={KEY.hex()} key={KEY.hex()}")', "`key=` is twice", WORDS_HELP),
        ("(anonymise,key=)", "the key is not 32 hex digits", KEYS_HELP),
        (f"(anonymise,key={KEY.hex()}0)", "the key is not 32 hex digits", KEYS_HELP),
        ("(anonymise,key=hidden)", "the key is hidden here", KEYS_HELP),
        ("(anonymise,,335)", "335 bytes of memory do not suit an `anonymise`", "between 336 and 1048576 bytes"),
        ("(device,a) -> ((bpf,tcp) -> (anonymise)) | (bpf,udp) -> (grab)",
         "the ways to this sink differ in what they show (`anonymise1`)",
         "put the transform behind the branches, or end each branch in a sink of its own"),
    ],
)  # fmt: skip
def test_what_is_refused(written: str, message: str, help: str) -> None:
    with pytest.raises(ExpressionError) as error:
        build(parse(written))
    assert (error.value.message, error.value.help) == (message, help)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": bytes(15)}, "the key is not 16 bytes"),
        ({"key": KEY.hex()}, "the key is not 16 bytes"),
        ({"ports": 1}, "`ports` is 1, neither True nor False"),
    ],
)
def test_what_is_refused_in_python(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Anonymise(**arguments)  # type: ignore[arg-type]
    assert error.value.message == message
    assert "key" not in arguments or "`key=bytes.fromhex(...)`" in error.value.help


def test_a_policy_is_not_content_with_a_key_that_the_user_knows() -> None:
    assert Anonymise().serves_policy
    assert not Anonymise(key=KEY).serves_policy
    build(parse(Anonymise.example))


@given(
    st.sampled_from((4, 16)).flatmap(lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 2)), st.data()
)
def test_common_prefixes_are_as_long_as_before(pair: tuple[bytes, bytes], data: st.DataObject) -> None:
    a, bits = pair[0], 8 * len(pair[0])
    common = data.draw(st.integers(0, bits))
    b = (number(a) >> bits - common << bits - common | number(pair[1]) & (1 << bits - common) - 1).to_bytes(
        len(a), "big"
    )
    after = [number(address_pseudonym(KEY, address)) for address in (a, b)]
    assert (after[0] ^ after[1]).bit_length() == (number(a) ^ number(b)).bit_length()


def test_ports_are_replaced_one_to_one() -> None:
    for key in (KEY, OTHER_KEY):
        assert len({port_pseudonym(key, port) for port in range(65_536)}) == 65_536


@pytest.mark.root
@pytest.mark.parametrize("frames", [corpus.packets(SEED), list(random_frames(SEED, 3_000))], ids=["corpus", "random"])
def test_records_are_the_model_s_with_and_without_a_cache(frames: list[bytes]) -> None:
    nodes = (node(), node(True), node(True, mbuf_bytes=NO_CACHE))
    with loaded(*(flow_text(each) for each in nodes), flow_text(node(), snaplen=40)) as flows:
        for frame in frames:
            plain, with_ports = anonymised(frame, KEY), anonymised(frame, KEY, True)
            expected = [plain, with_ports, with_ports, plain[:40]]
            for turn in ("first", "from the cache"):
                assert flows[0].run(frame) == frame, "the packet was changed"
                assert [last(flow, frame) for flow in flows] == expected, (turn, frame.hex())


@pytest.mark.root
def test_random_changes_to_frames() -> None:
    heads = st.sampled_from(list(random_frames(SEED + 1, 200)))
    changes = st.lists(st.tuples(st.integers(12, 100), st.integers(0, 255)), max_size=4)
    with loaded(flow_text(node(True)), flow_text(node())) as flows:

        @settings(max_examples=500)
        @given(heads, changes, st.integers(14, 500))
        def check(head: bytes, changes: list[tuple[int, int]], length: int) -> None:
            changed = bytearray(head)
            for at, value in changes:
                changed[at % len(changed)] = value
            frame = bytes(changed[:length]).ljust(14, b"\0")
            expected = [anonymised(frame, KEY, True), anonymised(frame, KEY)]
            for turn in ("first", "from the cache"):
                assert flows[0].run(frame) == frame, "the packet was changed"
                assert [last(flow, frame) for flow in flows] == expected, turn

        check()


@pytest.mark.root
def test_nothing_of_the_original_is_anywhere_in_the_slot() -> None:
    rng = random.Random(SEED + 2)
    secret = (
        [rng.randbytes(6) for _ in range(2)],
        [rng.randbytes(4) for _ in range(2)],
        [rng.randbytes(16) for _ in range(2)],
    )
    macs, four, six = secret
    marks = [rng.randbytes(4) for _ in range(40)]  # in payloads, options, checksums and extension headers
    filling = b"".join(marks)
    redirect = bytes((5, 1)) + marks[0][:2] + four[1] + filling
    segments = [
        (6, tcp(1, 2, filling)[:16] + marks[1][:2] + bytes(2) + filling),
        (1, redirect),
        (47, filling),
        (50, filling),
    ]
    segments += [(17, udp(1, 2)[:6] + marks[2][:2] + filling), (132, sctp(1, 2)[:8] + marks[3] + filling)]
    option = b"\x07\x27\x04" + filling[:37]  # record route
    frames = [ether(0x0806, arp(1)[:8] + macs[0] + four[0] + macs[1] + four[1]), ether(0x88CC, filling)]
    for protocol, body in segments:
        head = bytearray(ipv4(protocol, option + body, words=5))
        head[0], head[12:20] = 0x4F, b"".join(four)
        over_six = bytearray(
            ipv6(0, bytes((60, 1)) + filling[:14] + bytes((protocol, 2)) + six[0] + filling[:6] + body)
        )
        over_six[8:40] = b"".join(six)
        frames += [ether(0x0800, bytes(head)), ether(0x86DD, bytes(over_six)), ether(0x8847, bytes(4) + bytes(head))]
    frames = [macs[0] + macs[1] + frame[12:] for frame in frames]
    frames += [frame[:cut] for frame in frames for cut in range(14, len(frame), 5)]
    for snaplen in (256, 30):
        with loaded(flow_text(node(True), snaplen=snaplen)) as (flow,):
            for frame in frames:
                assert flow.run(frame) == frame
                (batch,) = flow.batches()
                slot = batch.records.tobytes()
                leaked = [part.hex() for part in (*macs, *four, *six, *marks) if part in slot]
                assert not leaked, frame.hex()


@pytest.mark.root
def test_what_the_record_does_not_take_never_was_in_the_ring() -> None:
    frame = ether(0x0800, ipv4(6, tcp(1234, 80, b"\xab" * 500)))
    for snaplen, captured in ((256, 54), (20, 20), (33, 33)):
        with loaded(flow_text(node(), snaplen=snaplen)) as (flow,):
            flow.run(frame)
            (batch,) = flow.batches()
            data = batch.records["data"][0].tobytes()
            padded = (captured + 3) // 4 * 4
            assert data[captured:padded] == bytes(padded - captured)
            assert set(data[padded + 4 :]) <= {0}, "behind the header of the option that fills the slot"


@pytest.mark.root
@pytest.mark.parametrize("snaplens", [(1, 2, 3, 5), (6, 7, 29, 256)])
def test_frames_and_records_of_every_length(snaplens: tuple[int, ...]) -> None:
    frames = [ether(0x0800, ipv4(6, tcp(1, 2, b"\xab" * 9))), ether(0x86DD, ipv6(6, tcp(1, 2, b"\xab" * 9)))]
    with loaded(*(flow_text(node(), snaplen=snaplen) for snaplen in snaplens)) as flows:
        for frame in (whole[:length] for whole in frames for length in range(14, len(whole) + 1)):
            flows[0].run(frame)
            for flow, snaplen in zip(flows, snaplens, strict=True):
                (batch,) = flow.batches()
                slot, expected = batch.records[0].tobytes(), anonymised(frame, KEY)[:snaplen]
                assert int.from_bytes(slot[20:24], "little") == len(expected)
                assert int.from_bytes(slot[24:28], "little") == len(frame)
                assert slot[28:].startswith(expected + bytes(-len(expected) % 4))
                assert slot[-4:] == slot[4:8] == len(slot).to_bytes(4, "little")


@pytest.mark.root
def test_checksums_are_valid_and_addresses_keep_their_order_of_bits() -> None:
    with loaded(flow_text(node())) as (flow,):
        for address in ("10.0.0.1", "10.0.0.2", "10.0.1.1", "255.255.255.255", "0.0.0.0"):
            ip = shown(flow, ether(0x0800, ipv4(17, udp(1, 2), address, "10.0.0.1", words=7, number=77)))[14:42]
            assert checksum(ip) == 0
            common = 32 - (int(ip_address(address)) ^ int(ip_address("10.0.0.1"))).bit_length()
            assert 32 - (number(ip[12:16]) ^ number(ip[16:20])).bit_length() == common


@pytest.mark.root
@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (("(snap)", node()), lambda frame: anonymised(frame, KEY)),
        ((node(), "(snap,100)"), lambda frame: anonymised(frame, KEY)),
        ((node(), node(True, OTHER_KEY)), lambda frame: anonymised(anonymised(frame, KEY), OTHER_KEY, True)),
        ((node(True, mbuf_bytes=NO_CACHE), "(snap)", node(key=OTHER_KEY)), lambda frame: anonymised(anonymised(frame, KEY, True), OTHER_KEY)),
    ],
)  # fmt: skip
def test_several_in_a_row(stages: tuple[str, ...], expected: Callable[[bytes], bytes]) -> None:
    with loaded(flow_text(*stages)) as (flow,):
        for frame in random_frames(SEED + 3, 300):
            assert shown(flow, frame) == expected(frame)


@pytest.mark.root
def test_sinks_with_and_without_it_and_no_results_behind_it() -> None:
    frame = ether(0x0800, ipv4(17, udp(1234, 53, bytes(90))))
    expression = (
        f"(device,tap0) -> (classify,dport) -> ((grab) | ({node(True)} -> (grab)) | ({node()} -> (snap) -> (grab)))"
    )
    with loaded(expression, snaplen=256) as (flow,):
        assert flow.run(frame) == frame
        found = {(packet.data, packet.result) for batch in flow.batches() for packet in batch.packets(("tap0",))}
    assert found == {(frame, 53), (anonymised(frame, KEY, True), None), (anonymised(frame, KEY), None)}


@pytest.mark.root
def test_as_many_flows_as_fit_into_a_segment_are_small_enough_for_the_verifier() -> None:
    frame = ether(0x86DD, ipv6(6, tcp(1234, 80, bytes(60))))
    keys = [bytes([number]) * 16 for number in range(5)]
    with loaded(*(flow_text("(bpf,tcp)", node(True, key)) for key in keys)) as flows:
        assert flows[0].run(frame) == frame
        assert [last(flow, frame) for flow in flows] == [anonymised(frame, key, True) for key in keys]


@pytest.mark.root
def test_on_live_traffic_each_flow_has_a_key_of_its_own_and_flows_that_share_the_node_its(network: Network) -> None:
    frames = [ether(0x0800, ipv4(17, udp(1, 53, bytes(40)), f"10.0.0.{host}")) for host in range(8)]

    def grabbed(*endings: str) -> list[list[bytes]]:
        flows = [Flow.create().populate(f"(device,tap0) -> {ending}").instantiate() for ending in endings]
        try:
            for flow in flows:
                flow.activate()
            network.send(frames)
            for flow in flows:
                flow.pause(wait=True)
            found = [[data.data for batch in flow.poll() for data in batch.packets(flow.interfaces)] for flow in flows]
            with pytest.raises(FfpfError, match="the memory of an `anonymise` is private"):
                _ = flows[0].node("anonymise1").mbuf
            return found
        finally:
            Flow.close_all(flows)

    with network.enter():
        alone, sharing, again = (
            grabbed(f"{node()} -> (grab,snaplen=256)"),
            grabbed("(anonymise) -> (grab,snaplen=256)", "(anonymise) -> (bpf,udp) -> (grab,snaplen=200)"),
            grabbed("(anonymise) -> (grab)"),
        )
    assert alone == [[anonymised(frame, KEY) for frame in frames]]
    assert sharing[0] == sharing[1]
    assert [len(set(records)) for records in (sharing[0], again[0])] == [8, 8]
    assert not set(sharing[0]) & set(again[0])
