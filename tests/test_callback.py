"""`callback`: a Python function gets the packets that reach it, and no others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ffpf_bpf import Batch, Flow, Packet, bpf, callback, device, grab, packetcount, parse, python, text
from ffpf_bpf.errors import ExpressionError, FfpfError
from tests.network import Network, udp


def heard(batch: Batch) -> None:
    """A function with a name."""


@pytest.mark.parametrize(
    ("expression", "node", "shown"),
    [
        ("(callback,heard)", callback(heard), "callback('heard')"),
        ("(Callback as c,heard)", callback(heard, name="c"), "callback('heard', name='c')"),
        (
            '(callback,"heard packets snaplen=96")',
            callback(heard, packets=True, snaplen=96),
            "callback('heard', packets=True, snaplen=96)",
        ),
        ("(callback,function)", callback(lambda batch: None), "callback('function')"),
    ],
)
def test_text_and_python(expression: str, node: callback, shown: str) -> None:
    assert parse(expression) == node
    assert parse(text(node)) == node
    assert python(node) == shown
    assert eval(shown, {"callback": callback}) == node


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(callback)", "`` names no function"),
        ("(callback,snaplen=96)", "`snaplen=96` names no function"),
        ('(callback,"web single")', "`web single` names no function"),
        ("(callback,1st)", "`1st` is no function's name"),
        ("(callback,packets)", "`packets` is no function's name"),
        ('(callback,"web snap=1")', "`snap=` is unknown"),
        ('(callback,"web snaplen=70000")', "a snaplen of 70000 bytes"),
    ],
)
def test_what_is_no_callback(expression: str, message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        parse(expression)
    assert error.value.message == message


def test_a_value_that_is_no_function() -> None:
    with pytest.raises(ExpressionError, match="7 is no function"):
        callback(7)  # type: ignore[arg-type]


def test_functions_and_names_must_meet() -> None:
    made = Flow.create().populate("(device,tap0) -> (callback,web)")
    with pytest.raises(ExpressionError) as error:
        made.instantiate()
    assert error.value.message == "nobody gave the function `web`"
    assert 'callbacks={"web": function}' in error.value.help
    with pytest.raises(ExpressionError, match="no callback is called `dns`"):
        made.populate("(device,tap0) -> (callback,web)", callbacks={"dns": heard})
    with pytest.raises(ExpressionError, match="7 is no function"):
        made.populate("(device,tap0) -> (callback,web)", callbacks={"web": 7})  # type: ignore[dict-item]
    with pytest.raises(ExpressionError, match="names no functions"):
        made.populate("(device,tap0) -> (callback,web)", callbacks=[heard])  # type: ignore[arg-type]
    assert made.populate("(device,tap0) -> (callback,web)", callbacks={"web": heard}).authorise().accepted


@pytest.fixture
def inside(network: Network) -> Iterator[Network]:
    with network.enter():
        yield network


FRAMES = [udp(port) for port in (80, 53, 80, 53, 443, 53)]


@pytest.mark.root
def test_each_sink_gets_what_reached_it(inside: Network) -> None:
    web: list[int] = []
    dns: list[Packet] = []
    expression = device("tap0") >> (
        (bpf("udp port 80 or udp port 53") >> callback(lambda batch: web.extend(batch.records["original"].tolist())))
        | (bpf("udp port 53") >> callback(dns.append, packets=True, snaplen=60))
        | (bpf("udp port 443 or udp port 53") >> grab())
        | packetcount()
    )
    with Flow.create().populate(expression).instantiate().activate() as made:
        inside.send(FRAMES)
        made.pause(wait=True)
        grabbed = [packet for batch in made.poll() for packet in batch.packets(made.interfaces)]
        ledger = made.stats().ledger
    assert web == [len(FRAMES[0])] * 5
    assert [packet.length for packet in dns] == [len(FRAMES[0])] * 3
    assert [(p.interface, p.data) for p in dns] == [("tap0", FRAMES[1])] * 3  # once, at the largest snaplen
    assert [packet.data for packet in grabbed] == [FRAMES[1], FRAMES[3], FRAMES[4], FRAMES[5]]
    assert (ledger.seen, ledger.delivered, ledger.counted) == (6, 6, 0)


@pytest.mark.root
def test_dispatch_runs_callbacks_alone(inside: Network) -> None:
    times: list[int] = []
    made = Flow.create().populate(
        '(device,tap0) -> (bpf,"udp port 53") -> (callback,"dns packets")',
        callbacks={"dns": lambda packet: times.append(packet.time_ns)},
    )
    with made.instantiate().activate():
        inside.send(FRAMES)
        made.dispatch(duration_s=0.2)
        made.dispatch(idle=lambda: True)
        assert list(made.poll()) == []
    assert len(times) == 3
    assert times == sorted(times)


@pytest.mark.root
def test_what_a_function_raises_comes_out_and_the_flow_lives(inside: Network) -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("no more")

    with Flow.create().populate(device("tap0") >> callback(fail)).instantiate().activate() as made:
        inside.send(FRAMES[:2])
        with pytest.raises(RuntimeError, match="no more"):
            made.dispatch(duration_s=1)
        made.pause(wait=True)
        assert made.stats().ledger.delivered == 2


@pytest.mark.root
def test_the_other_sinks_get_theirs_when_a_function_fails(inside: Network) -> None:
    heard_of: list[int] = []

    def fail(packet: Packet) -> None:
        raise RuntimeError("no more")

    expression = device("tap0") >> (
        callback(fail, packets=True) | callback(lambda batch: heard_of.append(len(batch))) | grab()
    )
    with Flow.create().populate(expression).instantiate().activate() as made:
        inside.send(FRAMES)
        made.pause(wait=True)
        found = made.poll()
        assert len(next(found)) == 6
        with pytest.raises(RuntimeError, match="no more"):
            next(found)
    assert heard_of == [6]


@pytest.mark.root
def test_a_callback_may_close_its_flow(inside: Network) -> None:
    with Flow.create().populate(device("tap0") >> callback(lambda batch: made.close())).instantiate() as made:
        made.activate()
        inside.send(FRAMES)
        made.dispatch(duration_s=1)
    assert made.stats().ledger.delivered == 6


@pytest.mark.root
def test_nodes_are_found_by_id(inside: Network) -> None:
    with Flow.create().populate('(device,tap0) -> (packetcount as hits,,16) -> (bpf,"udp port 53")') as made:
        made.instantiate().activate()
        inside.send(FRAMES)
        made.pause(wait=True)
        hits = made.node("hits")
        assert repr(hits) == "FlowNode(id='hits', node=Packetcount(name='hits', mbuf_bytes=16))"
        assert hits.mbuf.shape[1] == 16
        assert hits.mbuf.view("u8")[:, 0].sum() == 6
        assert (hits.statistics.packets_in, hits.statistics.counts) == (6, {"packets": 6})
        hits.mbuf.view("u8")[:, 0] = 0
        hits.mbuf[0, 8:] = 255
        made.activate()
        inside.send(FRAMES[:2])
        made.pause(wait=True)
        assert hits.statistics.counts == {"packets": 2}
        assert (hits.mbuf[0, 8:] == 255).all()
        with pytest.raises(FfpfError, match="no node is called `missing`") as error:
            made.node("missing")
        assert "`hits`, `bpf1`, `grab1`" in error.value.help
        with pytest.raises(FfpfError, match="a `bpf` has no memory"):
            _ = made.node("bpf1").mbuf
        view = hits.mbuf.view("u8")
    assert view[:, 0].sum() == 2
    del view
    with pytest.raises(FfpfError, match="the flow is closed"):
        _ = hits.mbuf
