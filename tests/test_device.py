"""`device`: where packets come from; a path begins with one, and `@xdp` is understood."""

from __future__ import annotations

import pytest

from ffpf_bpf import device
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.parser import parse
from tests.corpus.packets import ether
from tests.network import Network
from tests.nodes import assert_forms, live, refusal
from tests.segment import loaded

FRAME = ether(0x88CC, bytes(46))


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(device,eth0)", Device("eth0"), "(device,eth0)", "device('eth0')"),
        ("(DEVICE,eth0@xdp)", Device("eth0"), "(device,eth0)", "device('eth0')"),
        ('(device," wlp3s0.100 ")', Device("wlp3s0.100"), "(device,wlp3s0.100)", "device('wlp3s0.100')"),
        (
            "(device,eth0@tc-ingress)",
            Device("eth0@tc-ingress"),
            "(device,eth0@tc-ingress)",
            "device('eth0@tc-ingress')",
        ),
        (
            "(device,fifteen_letters)",
            Device("fifteen_letters"),
            "(device,fifteen_letters)",
            "device('fifteen_letters')",
        ),
        ("(device,eth0,monitor)", Device("eth0", True), "(device,eth0,monitor)", "device('eth0', monitor=True)"),
        ('(device,"eth0@xdp, monitor")', Device("eth0", True), "(device,eth0,monitor)", "device('eth0', monitor=True)"),
        ("(device,blue/eth0@xdp)", Device("blue/eth0"), "(device,blue/eth0)", "device('blue/eth0')"),
        (
            '(device,"blue/v[!a]th*@tc-egress")',
            Device("blue/v[!a]th*@tc-egress"),
            '(device,"blue/v[!a]th*@tc-egress")',
            "device('blue/v[!a]th*@tc-egress')",
        ),
        ('(device,"a,b)")', Device("a,b)"), '(device,"a,b)")', "device('a,b)')"),
        ("(device,é)", Device("é"), "(device,é)", "device('é')"),
    ],
)
def test_text_and_python(written: str, node: Device, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(device)", "no interface named"),
        ('(device,"  ")', "no interface named"),
        ("(device,@xdp)", "no interface named"),
        ("(device,eth0@tc-ingress,monitor)", "a monitor port is at XDP, not at `tc-ingress`"),
        ("(device,eth0@tc-egress,monitor)", "a monitor port is at XDP, not at `tc-egress`"),
        ('(device,"eth0,monitor",monitor)', "`eth0,monitor` is taken for a monitor port"),
        ("(device,eth0,mirror)", "`mirror` is not a number of bytes"),
        ("(device,,monitor)", "no interface named"),
        ("(device,eth0@)", "unknown hook ``"),
        ("(device,eth0@XDP)", "unknown hook `XDP`"),
        ("(device,eth0@xdp@xdp)", "unknown hook `xdp@xdp`"),
        ("(device,eth 0)", "`eth 0` cannot be the name of an interface"),
        ("(device,eth0:1)", "`eth0:1` cannot be the name of an interface"),
        ("(device,../eth0)", "`..` cannot be the name of a network namespace"),
        ("(device,/eth0)", "`` cannot be the name of a network namespace"),
        ("(device,a/b/eth0)", "`b/eth0` cannot be the name of an interface"),
        ("(device,blue/@tc-egress)", "no interface named"),
        ("(device,.)", "`.` cannot be the name of an interface"),
        ("(device,..)", "`..` cannot be the name of an interface"),
        ("(device,sixteen__letters)", "`sixteen__letters` cannot be the name of an interface"),
        ("(device,éééééééé)", "`éééééééé` cannot be the name of an interface"),
        ('(device,"eth\x1b0")', "a name with characters that cannot be seen"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("veth*", "veth1", "an interface may be both `veth1` and `veth*`"),
        ("*1", "v?t*", "an interface may be both `v?t*` and `*1`"),
        ("blue/*", "blue/lo", "an interface may be both `blue/lo` and `blue/*`"),
        ("veth*", "eth*", ""),
        ("veth*", "veth1@tc-ingress", ""),
        ("veth*", "blue/veth1", ""),
        ("blue/veth*", "green/veth*", ""),
        ("[!a-c]*", "[a-c]*", ""),
        ("?", "??", ""),
    ],
)
def test_one_interface_is_one_tap_of_a_flow(one: str, other: str, message: str) -> None:
    """A packet arrives at one of a flow's devices: proofs take that for granted."""
    flow = device(one) | device(other)
    if not message:
        assert build(flow).taps == (Device(one), Device(other))
        return
    with pytest.raises(ExpressionError) as error:
        build(flow)
    assert error.value.message == message


@pytest.mark.parametrize("tap", [None, 0, b"eth0"])
def test_refused_in_python(tap: object) -> None:
    with pytest.raises(ExpressionError) as error:
        Device(tap)  # type: ignore[arg-type]
    assert error.value.message == f"{tap!r} is no text"


def test_taps_are_named_once_in_the_order_of_the_text() -> None:
    graph = build(parse("(device,b) | (device,a@xdp) | ((device,b) -> (bpf,udp)) -> (packetcount)"))
    assert graph.taps == (Device("b"), Device("a"))


@pytest.mark.root
def test_only_the_paths_of_the_tap_see_its_packets() -> None:
    """A flow on two taps, run as the tap `one` runs it."""
    expression = "((device,one) -> (packetcount as here)) | ((device,two) -> (packetcount as there))"
    with loaded(expression, tap="one") as (flow,):
        for _ in range(3):
            flow.run(FRAME)
        statistics = flow.statistics()
    assert statistics.node("here").counts == {"packets": 3}
    assert statistics.node("there").counts == {"packets": 0}
    assert statistics.node("device2").packets_out == 0


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    with live(network, "(device,tap0@xdp) | (device,lo) -> (packetcount)") as flow:
        network.send([FRAME] * 5)
        flow.pause(wait=True)
        statistics = flow.stats()
    assert (statistics.node("device1").packets_out, statistics.node("device2").packets_out) == (5, 0)
