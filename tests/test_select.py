"""Edges that select: both forms are one value, errors say where they are, and each case ends for itself."""

from __future__ import annotations

import pytest

import ffpf_bpf
from ffpf_bpf import bpf, bytecount, classify, device, grab, packetcount, pkt, scan
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.expression import OTHERS, Expression, Label, Select, nodes
from ffpf_bpf.graph.graph import Case, Union
from ffpf_bpf.graph.parser import EDGES, parse
from ffpf_bpf.graph.printer import python, text

PORT = "(classify,dport)"
A, B, C = bpf("a"), bpf("b"), bpf("c")


@pytest.mark.parametrize(
    ("written", "printed", "in_python", "value"),
    [
        (f"{PORT} -80-> (bpf,a)", f"{PORT} -80-> (bpf,a)", "classify('dport').on({80: bpf('a')})",
         classify("dport").on({80: A})),
        (f"({PORT})\n- 80 , 8000 .. 8080\t-> (bpf,a)|-*->(bpf,b)", f"{PORT} -80,8000..8080-> (bpf,a) | -*-> (bpf,b)",
         "classify('dport').on({(80, range(8000, 8081)): bpf('a'), '*': bpf('b')})",
         classify("dport").on({(80, range(8000, 8081)): A, "*": B})),
        (f"{PORT} -*-> (bpf,a) | -0..65535-> (bpf,b)", f"{PORT} -*-> (bpf,a) | -0..65535-> (bpf,b)",
         "classify('dport').on({'*': bpf('a'), range(0, 65536): bpf('b')})",
         classify("dport").on({"*": A, range(65_536): B})),
        (f"{PORT} -007-> (bpf,a) | -8..8-> (bpf,b)", f"{PORT} -7-> (bpf,a) | -8-> (bpf,b)",
         "classify('dport').on({7: bpf('a'), 8: bpf('b')})", classify("dport").on({(7,): A, range(8, 9): B})),
        ("(scan as s,GET|POST) -1-> (bpf,a)", '(scan as s,"GET|POST") -1-> (bpf,a)',
         "scan(['GET', 'POST'], name='s').on({1: bpf('a')})", scan(["GET", "POST"], name="s").on({1: A})),
        # What follows an edge is a term; `|` begins the next edge, `->` goes on behind all of them.
        (f"{PORT} -1-> (bpf,a) & !(bpf,b) | -2-> !(bpf,c) -> (bpf,a)",
         f"{PORT} -1-> (bpf,a) & !(bpf,b) | -2-> !(bpf,c) -> (bpf,a)",
         "classify('dport').on({1: bpf('a') & ~bpf('b'), 2: ~bpf('c')}) >> bpf('a')",
         classify("dport").on({1: A & ~B, 2: ~C}) >> A),
        (f"{PORT} -1-> ((bpf,a) -> (bpf,b)) | -2-> ((bpf,a) | (bpf,c))",
         f"{PORT} -1-> ((bpf,a) -> (bpf,b)) | -2-> ((bpf,a) | (bpf,c))",
         "classify('dport').on({1: bpf('a') >> bpf('b'), 2: bpf('a') | bpf('c')})",
         classify("dport").on({1: A >> B, 2: A | C})),
        (f"{PORT} -1-> ((classify,ttl) -2-> (bpf,a) | -3-> (bpf,b)) | -4-> (bpf,c)",
         f"{PORT} -1-> ((classify,ttl) -2-> (bpf,a) | -3-> (bpf,b)) | -4-> (bpf,c)",
         "classify('dport').on({1: classify('ttl').on({2: bpf('a'), 3: bpf('b')}), 4: bpf('c')})",
         classify("dport").on({1: classify("ttl").on({2: A, 3: B}), 4: C})),
        (f"({PORT} -1-> (bpf,a)) | (bpf,b)", f"({PORT} -1-> (bpf,a)) | (bpf,b)",
         "classify('dport').on({1: bpf('a')}) | bpf('b')", classify("dport").on({1: A}) | B),
        (f"(bpf,b) & ({PORT} -1-> (bpf,a))", f"(bpf,b) & ({PORT} -1-> (bpf,a))",
         "bpf('b') & classify('dport').on({1: bpf('a')})", B & classify("dport").on({1: A})),
        (f"!({PORT} -1-> (bpf,a))", f"!({PORT} -1-> (bpf,a))",
         "~classify('dport').on({1: bpf('a')})", ~classify("dport").on({1: A})),
        (f"(bpf,a) -> (({PORT} -1-> (bpf,b))) -> {PORT} -*-> (bpf,c)", f"(bpf,a) -> {PORT} -1-> (bpf,b) -> {PORT} -*-> (bpf,c)",
         "bpf('a') >> classify('dport').on({1: bpf('b')}) >> classify('dport').on({'*': bpf('c')})",
         A >> classify("dport").on({1: B}) >> classify("dport").on({"*": C})),
    ],
)  # fmt: skip
def test_text_and_python_are_one_value(written: str, printed: str, in_python: str, value: Expression) -> None:
    assert parse(written) == value
    assert (text(value), python(value)) == (printed, in_python)
    assert parse(printed) == value == eval(in_python, vars(ffpf_bpf).copy())


def test_a_select_s_value() -> None:
    select = classify("dport", name="x").on({80: A, (443, range(8000, 8002)): B, "*": pkt.tcp})
    assert isinstance(select, Select)
    assert select.cases[:2] == ((((80, 80),), A), (((443, 443), (8000, 8001)), B))
    assert select.cases[2][0] == OTHERS
    assert [node.class_name for node in nodes(select)] == ["classify", "bpf", "bpf", "bpf"], "in the order of the text"


def error_of(wrong: str) -> tuple[str, str, str]:
    """Where, what, and the character that the caret is under."""
    with pytest.raises(ExpressionError) as error:
        parse(wrong)
    line, caret = str(error.value).split("\n")[1:3]
    return error.value.where, error.value.message, line[caret.index("^") :].split()[0]


NOT_ONE_NODE = "an edge that selects follows one node"
NO_RESULT = "`bpf` has no result to select on"


@pytest.mark.parametrize(
    ("wrong", "where", "message", "at"),
    [
        (f"{PORT} | (bpf,a) -80-> (grab)", "line 1, column 28", NOT_ONE_NODE, "-80->"),
        (f"{PORT} & (bpf,a) -80-> (grab)", "line 1, column 28", NOT_ONE_NODE, "-80->"),
        (f"({PORT} -> (bpf,a)) -80-> (grab)", "line 1, column 31", NOT_ONE_NODE, "-80->"),
        (f"({PORT} -1-> (bpf,a)) -80-> (grab)", "line 1, column 33", NOT_ONE_NODE, "-80->"),
        (f"(device,a) ->\n !{PORT}\n -80-> (grab)", "line 3, column 2", NOT_ONE_NODE, "-80->"),
        ("(bpf,a) -80-> (grab)", "line 1, column 9: (bpf)", NO_RESULT, "-80->"),
        ("(bpf as web) -*-> (grab)", "line 1, column 14: (bpf as web)", NO_RESULT, "-*->"),
        ("(device,a) -> (bytecount) -1-> (grab)", "line 1, column 27: (bytecount)", "`bytecount` has no result to select on", "-1->"),
        (f"{PORT} -65536-> (grab)", "line 1, column 18: on", "65536 is no result", "-65536->"),
        (f"{PORT} -1-> (grab) | -99999-> (grab)", "line 1, column 32: on", "99999 is no result", "-99999->"),
        (f"{PORT} -100000-> (grab)", "line 1, column 18: on", "100000 is no result", "-100000->"),
        ("(classify as x,version) -5,7-> (grab)", "line 1, column 25: (classify as x)", "`classify` never has the result 7", "-5,7->"),
        (f"{PORT} -0x10000-> (grab)", "line 1, column 18: on", "65536 is no result", "-0x10000->"),
        (f"{PORT} -0x-> (grab)", "line 1, column 18", "`0x` is no result", "-0x->"),
        (f"{PORT} -80..-> (grab)", "line 1, column 18", "`80..` is no result", "-80..->"),
        (f"{PORT} -80...90-> (grab)", "line 1, column 18", "`80...90` is no result", "-80...90->"),
        (f"{PORT} -80,-> (grab)", "line 1, column 18", "`` is no result", "-80,->"),
        (f"{PORT} -80 81-> (grab)", "line 1, column 18", "`80 81` is no result", "-80"),
        (f"{PORT} -80-> (grab) | -443,80-> (bytecount)", "line 1, column 18: (classify)", "result 80 is in two cases", "-80->"),
        (f"{PORT} -1..9-> (grab) | -5-> (bytecount)", "line 1, column 18: (classify)", "result 5 is in two cases", "-1..9->"),
        (f"{PORT} -5..9-> (grab) | -1..5-> (grab)", "line 1, column 18: (classify)", "result 5 is in two cases", "-5..9->"),
        (f"{PORT} -1,1-> (grab)", "line 1, column 18: (classify)", "result 1 is in two cases", "-1,1->"),
        (f"{PORT} -*-> (grab) | -1-> (grab) | -*-> (grab)", "line 1, column 18: (classify)", "two cases `-*->`", "-*->"),
        (f"{PORT} -http-> (grab)", "line 1, column 18", "`http` is no result", "-http->"),
        (f"{PORT} -80-> (grab) | - https ,8080 -> (grab)", "line 1, column 33", "`https` is no result", "-"),
        (f"{PORT} -80-443-> (grab)", "line 1, column 18", "`80-443` is no result", "-80-443->"),
        (f"{PORT} -<1024-> (grab)", "line 1, column 18", "`<1024` is no result", "-<1024->"),
        # What is no edge at all.
        (f"{PORT} -x-> (grab)", "line 1, column 18", "`x` is no result", "-x->"),
        (f"{PORT} --> (grab)", "line 1, column 18", "unexpected `-`", "-->"),
        (f"{PORT} -80- > (grab)", "line 1, column 18", "unexpected `-`", "-80-"),
        (f"{PORT} -*,1-> (grab)", "line 1, column 18", "`*` is no result", "-*,1->"),
        (f"{PORT} -1,*-> (grab)", "line 1, column 18", "`*` is no result", "-1,*->"),
        (f"{PORT} -\u0663-> (grab)", "line 1, column 18", "`\u0663` is no result", "-\u0663->"),
        (f"{PORT} -80-> (grab) | (bytecount)", "line 1, column 33", "unexpected `(`", "(bytecount)"),
        (f"{PORT} -80-> (grab) -443-> (grab)", "line 1, column 31", "unexpected `-`", "-443->"),
        (f"{PORT} -80-> {PORT} -1-> (grab)", "line 1, column 41", "unexpected `-`", "-1->"),
        (f"{PORT} -80-> -443-> (grab)", "line 1, column 24", "unexpected `-`", "-443->"),
        ("-80-> (grab)", "line 1, column 1", "unexpected `-`", "-80->"),
    ],
)  # fmt: skip
def test_errors_have_their_place(wrong: str, where: str, message: str, at: str) -> None:
    assert error_of(wrong) == (where, message, at)


@pytest.mark.parametrize("wrong", [f"{PORT} -80->", f"{PORT} -80-> (grab) |"])
def test_an_edge_that_leads_nowhere(wrong: str) -> None:
    with pytest.raises(ExpressionError) as error:
        parse(wrong)
    assert error.value.message == "the expression ends too early"
    assert error.value.where == f"line 1, column {len(wrong) + 1}"


def test_a_range_that_ends_before_it_begins() -> None:
    with pytest.raises(ExpressionError, match=r"`90\.\.80` runs backwards") as error:
        parse(f"{PORT} -90..80-> (grab)")
    assert error.value.help == "write `80..90`"
    assert parse(f"{PORT} -80..80-> (grab)") == parse(f"{PORT} -80-> (grab)")


def test_numbers_may_be_hexadecimal() -> None:
    hexadecimal = parse("(classify,ethertype) -0x0800,0x86dd-> (grab) | -0x1..0xF-> (packetcount)")
    assert text(hexadecimal) == "(classify,ethertype) -2048,34525-> (grab) | -1..15-> (packetcount)"


@pytest.mark.parametrize(
    ("node", "within", "beyond"),
    [
        ('(scan,"a|b")', (1, 2), (0, 3)),
        ("(classify,flow=4)", (0, 3), (4,)),
        ("(classify,version)", (4, 6), (3, 7)),
        ("(classify,vlan)", (0, 4095), (4096,)),
        ("(classify,dscp)", (0, 63), (64,)),
        ("(classify,proto)", (0, 255), (256,)),
        ("(classify,ttl)", (0, 255), (256,)),
        ("(classify,tcpflags)", (0, 255), (65_535,)),
        ("(classify,length)", (0, 65_535), ()),
    ],
)
def test_an_edge_that_no_packet_takes_is_refused(node: str, within: tuple[int, int], beyond: tuple[int, ...]) -> None:
    low, high = within
    parse(f"{node} -{low}-> (grab) | -{high}..65535-> (packetcount)")
    for number in beyond:
        with pytest.raises(ExpressionError, match=f"never has the result {number}") as error:
            parse(f"{node} -{number}-> (grab)")
        assert error.value.help == f"its results are from {low} to {high}"


def test_what_the_helps_say() -> None:
    for wrong, help in (
        ("(bpf,a) -80-> (grab)", "edges such as `-80->` follow nodes with a result, as `(classify,dport)`"),
        (f"!{PORT} -80-> (grab)", "put parentheses around what stands before: `(a) | ((classify,dport) -80-> (b))`"),
        (f"{PORT} -80,-> (grab)", "write `-80->`, `-80,443->`, `-8000..8080->`, or `-*->` for all others"),
        (f"{PORT} -http-> (grab)", f"results are numbers, no name is looked up: {EDGES}"),
        (f"{PORT} -65536-> (grab)", "results are from 0 to 65535"),
        (f"{PORT} -1,1-> (grab)", "each result leads to one case; join what both lead to with `|`"),
        (f"{PORT} -*-> (grab) | -*-> (grab)", "join what they lead to with `|`"),
        (f"{PORT} -80-> (grab) | (grab)", "expected an edge as `-80->`"),
        (f"{PORT} - (grab)", "expected `&` or `->` or `|` or an edge as `-80->` or the end"),
    ):
        with pytest.raises(ExpressionError) as error:
            parse(wrong)
        assert error.value.help == help


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, "-1 is no result"),
        (65_536, "65536 is no result"),
        (True, "True is no result"),
        (80.0, "80.0 is no result"),
        ("80", "'80' is no result"),
        ("**", "'**' is no result"),
        (None, "None is no result"),
        (range(5, 5), "range(5, 5) is no result"),
        (range(9, 5), "range(9, 5) is no result"),
        (range(0, 10, 2), "range(0, 10, 2) is no result"),
        (range(-1, 5), "range(-1, 5) is no result"),
        (range(65_000, 65_537), "range(65000, 65537) is no result"),
        ((80, "*"), "'*' is no result"),
        ((80, (81,)), "(81,) is no result"),
        ((), "a case without results"),
    ],
)
def test_keys_that_are_none(label: Label, message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        classify("dport").on({label: grab()})
    assert (error.value.where, error.value.message) == ("on", message)


def test_what_on_refuses_as_the_text_does() -> None:
    for make, message in (
        (lambda: bpf("udp").on({1: grab()}), NO_RESULT),
        (lambda: classify("dport", name="x").on({}), "0 cases"),
        (lambda: classify("dport").on({number: grab() for number in range(257)}), "257 cases"),
        (lambda: classify("dport").on({80: grab(), (443, range(70, 90)): grab()}), "result 80 is in two cases"),
        (lambda: classify("dport").on({80: "grab"}), "`on` joins flow expressions, got 'grab'"),
    ):
        with pytest.raises(ExpressionError) as error:
            make()
        assert error.value.message == message
    assert len(classify("dport").on({number: grab() for number in range(256)}).cases) == 256


@pytest.mark.parametrize(
    ("written", "completed"),
    [
        # No case ends: one sink behind all of them.
        ("-80-> (bpf,a) | -*-> (bpf,b)", "-80-> (bpf,a) | -*-> (bpf,b) -> (grab)"),
        ("-80-> (bpf,a) | -*-> (bpf,b) -> (bpf,c)", "-80-> (bpf,a) | -*-> (bpf,b) -> (bpf,c) -> (grab)"),
        # Some end: each of the others gets its own.
        ("-80-> (packetcount) | -*-> (bpf,b)", "-80-> (packetcount) | -*-> ((bpf,b) -> (grab))"),
        (
            "-80-> (grab,1) | -443-> (bpf,b) | -*-> ((bpf,c) | (bytecount))",
            "-80-> (grab,snaplen=1) | -443-> ((bpf,b) -> (grab)) | -*-> ((bytecount) | ((bpf,c) -> (grab)))",
        ),
        (
            "-80-> ((classify,ttl) -1-> (bpf,a) | -2-> (bpf,b)) | -3-> (grab)",
            "-80-> ((classify,ttl) -1-> (bpf,a) | -2-> (bpf,b) -> (grab)) | -3-> (grab)",
        ),
        (
            "-80-> ((classify,ttl) -1-> (bytecount) | -2-> (bpf,b)) | -3-> (bpf,c)",
            "-80-> ((classify,ttl) -1-> (bytecount) | -2-> ((bpf,b) -> (grab))) | -3-> ((bpf,c) -> (grab))",
        ),
        # All end.
        ("-80-> (packetcount) | -*-> (bytecount)", "-80-> (packetcount) | -*-> (bytecount)"),
        ("-80-> (grab) | -*-> ((bpf,b) -> (bytecount))", "-80-> (grab) | -*-> ((bpf,b) -> (bytecount))"),
    ],
)
def test_each_case_is_completed(written: str, completed: str) -> None:
    graph = build(parse(f"(device,eth0) -> {PORT} {written}"))
    assert text(graph.expression) == f"(device,eth0) -> {PORT} {completed}".replace("(grab,1)", "(grab,snaplen=1)")


def test_a_select_that_is_a_branch_is_completed_with_it() -> None:
    graph = build(parse(f"(device,eth0) -> ({PORT} -80-> (packetcount)) | (bpf,a)"))
    assert text(graph.expression) == f"(device,eth0) -> ({PORT} -80-> (packetcount)) | ((bpf,a) -> (grab))"
    graph = build(parse(f"(device,eth0) -> ({PORT} -80-> (bpf,b)) | (bpf,a)"))
    assert text(graph.expression) == f"(device,eth0) -> ({PORT} -80-> (bpf,b)) | (bpf,a) -> (grab)"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (f"{PORT} -80-> (grab)", "a path begins without a device"),
        (f"(device,a) -> {PORT} -80-> (device,b)", "`b` stands behind another node"),
        (f"(device,a) -> {PORT} -80-> (grab) | -*-> (grab) -> (bytecount)", "something follows a sink"),
        (f"(device,a) -> !({PORT} -80-> (grab))", "`!` stands before `(grab)`, which does not decide"),
        (f"(device,a) -> ({PORT} -80-> (grab)) & (bpf,a)", "`&` holds a sink, which passes nothing on"),
        (f"(device,a) -> {PORT} -80-> (bytecount as x) | -*-> (packetcount as x)", "two nodes are called `x`"),
    ],
)
def test_graphs_that_cannot_be(wrong: str, message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        build(parse(wrong))
    assert error.value.message == message


@pytest.mark.parametrize(
    "joined",
    [A >> classify("dport"), A | classify("dport"), ~classify("dport"), classify("dport").on({1: A})],
    ids=text,
)
def test_on_is_of_a_node(joined: Expression) -> None:
    with pytest.raises(ExpressionError) as error:
        joined.on({80: grab()})
    assert str(error.value) == (
        "`.on` is of a node: edges select on the result of one\n"
        'help: call it on the node itself: `a >> classify("dport").on({80: b})`'
    )


def test_the_steps_of_a_select() -> None:
    """`-*->` holds what no other edge does, wherever it stands."""
    expression = device("eth0") >> classify("dport").on({"*": grab(), (443, 80): packetcount(), 53: bytecount()})
    graph = build(expression)
    cases = [step for step in graph.steps if isinstance(step, Case)]
    assert cases == [
        Case(1, ((53, 53), (80, 80), (443, 443)), inverted=True),
        Case(1, ((443, 443), (80, 80))),
        Case(1, ((53, 53),)),
    ]
    assert isinstance(graph.steps[-1], Union)
    assert graph.tagged, "its records say the result"
    assert not build(device("eth0") >> classify("dport").on({1: packetcount()})).tagged, "there are none"
