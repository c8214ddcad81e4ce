"""Flow expressions: text and Python are one value, and what is wrong is said with its place and what to do."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import ffpf_bpf
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.classes.classify import FIELDS
from ffpf_bpf.graph.expression import Expression, Label, Node, Not, Then, all_of, any_of, then
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.printer import python, text

CLASS_LIST = ", ".join(CLASSES)

# Every class is in the random expressions; for one that is not in ARGUMENTS they are guessed from the types of its fields.
FILTERS = st.one_of(
    st.sampled_from(["udp", "tcp[13] & 2 != 0 and (port 80 or port 443)", "\\tcp", 'a"b\\', "port 53,80)"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
)
ARGUMENTS: dict[str, st.SearchStrategy[tuple[object, ...]]] = {
    "bpf": FILTERS.map(lambda filter_text: (filter_text,)),
    "device": st.from_regex(r"[a-z0-9._-]{3,15}(@(xdp|tc-ingress|tc-egress))?", fullmatch=True).map(lambda tap: (tap,)),
    "sampler": st.one_of(
        st.tuples(st.integers(1, (1 << 32) - 1)),
        st.tuples(st.just(0), st.floats(1 / (1 << 32), 1)),
        st.tuples(st.just(0), st.just(0.0), st.integers(1, (1 << 32) - 1)),
    ),
    "grab": st.integers(0, 65_535).map(lambda snaplen: (snaplen,)),
    "callback": st.tuples(st.from_regex(r"_[A-Za-z0-9_-]{0,9}", fullmatch=True), st.booleans(), st.integers(0, 65_535)),
    "limit": st.one_of(
        st.tuples(st.integers(1, 10**12).map("{}/s".format), st.integers(0, 10**6)),
        st.tuples(st.integers(10**6, 10**12).map("{}B/m".format), st.integers(1_522, 10**6)),
    ),
    "head": st.one_of(st.tuples(st.integers(1, 1 << 38)), st.tuples(st.just(0), st.integers(1, 1 << 38))),
    "tcpflags": st.sampled_from(["syn", "SYN !ack | rst", "fin|psh|urg|!cwr"]).map(lambda flags: (flags,)),
    "classify": st.one_of(st.tuples(st.sampled_from(FIELDS[:-1])), st.tuples(st.just("flow"), st.integers(1, 65_536))),
    "histogram": st.one_of(
        st.tuples(st.sampled_from(["size", "iat"])),
        st.tuples(st.sampled_from(["size", "iat"]), st.integers(1, 1 << 62), st.integers(1, 4_096)),
    ),
    "snap": st.integers(0, 65_535).map(lambda payload: (payload,)),
    "anonymise": st.tuples(st.booleans(), st.one_of(st.just(b""), st.binary(min_size=16, max_size=16))),
    "scan": st.tuples(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=4, unique=True)),
}
NAMES = st.one_of(st.just(""), st.just("as"), st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,9}", fullmatch=True))


COMMON = {field.name for field in fields(Node)}
GUESSES: dict[object, st.SearchStrategy[object]] = {"int": st.integers(0, 1 << 16), "str": st.text(max_size=10)}


@st.composite
def some_node(draw: st.DrawFn) -> Node:
    node_class = CLASSES[draw(st.sampled_from(sorted(CLASSES)))]
    own = [field for field in fields(node_class) if field.init and field.name not in COMMON]
    known = ARGUMENTS.get(node_class.class_name)
    arguments = draw(st.tuples(*(GUESSES[field.type] for field in own)) if known is None else known)
    try:
        node = node_class(*arguments, name=draw(NAMES))
    except ExpressionError:
        assume(known is not None)
        raise
    mbuf_bytes = draw(st.one_of(st.just(0), st.integers(max(1, node.default_mbuf_bytes), node_class.most_mbuf_bytes)))
    return replace(node, mbuf_bytes=mbuf_bytes)


@st.composite
def selections(draw: st.DrawFn, inner: st.SearchStrategy[Expression]) -> Expression:
    """Edges that select, of ranges that do not overlap."""
    bounds = sorted(draw(st.sets(st.integers(0, 65_536), min_size=2, max_size=9)))
    ranges = [range(low, high) for low, high in pairwise(bounds)]
    cases: dict[Label, Expression] = {
        tuple(some): draw(inner) for some in (ranges[::3], ranges[1::3], ranges[2::3]) if some
    }
    if draw(st.booleans()):
        cases["*"] = draw(inner)
    field = draw(st.sampled_from(("dport", "sport", "ethertype", "length")))
    return CLASSES["classify"](field, name=draw(NAMES)).on(cases)


def _joined(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=4)
    return st.one_of(
        *(several.map(lambda parts, join=join: join(*parts)) for join in (then, any_of, all_of)),
        inner.map(Not),
        selections(inner),
    )


EXPRESSIONS = st.recursive(some_node(), _joined, max_leaves=12)


@given(EXPRESSIONS)
def test_text_and_python_are_one_value(expression: Expression) -> None:
    assert parse(text(expression)) == expression
    assert eval(python(expression), vars(ffpf_bpf).copy()) == expression
    # One form: what was read is printed as it was printed.
    assert text(parse(text(expression))) == text(expression)


@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
def test_joins_of_the_same_kind_are_flat(a: Expression, b: Expression, c: Expression) -> None:
    assert (a >> b) >> c == a >> (b >> c)
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("(BPF,udp)", "(bpf,udp)"),
        ('( device , "eth0" )', "(device,eth0)"),
        ("(device,eth0@xdp)", "(device,eth0)"),
        ("((((device,eth0))))", "(device,eth0)"),
        ("(device,eth0)->(sampler,2,4)", "(device,eth0) -> (sampler,2)"),
        ("(bytecount,,8)", "(bytecount)"),
        ("(bytecount,,16)", "(bytecount,,16)"),
        ("(grab,96)", "(grab,snaplen=96)"),
        ('(bpf,"ip proto \\tcp")', '(bpf,"ip proto \\\\tcp")'),
        ("(device,a) -> ((device,b) -> (grab))", "(device,a) -> (device,b) -> (grab)"),
        ("(bpf,a) | (bpf,b) & (bpf,c)", "(bpf,a) | (bpf,b) & (bpf,c)"),
        ("((bpf,a) | (bpf,b)) & (bpf,c)", "((bpf,a) | (bpf,b)) & (bpf,c)"),
        ("(bpf,a) -> (bpf,b) | (bpf,c)", "(bpf,a) -> (bpf,b) | (bpf,c)"),
        ("((bpf,a) -> (bpf,b)) | (bpf,c)", "((bpf,a) -> (bpf,b)) | (bpf,c)"),
        ("!!(bpf,a)", "!!(bpf,a)"),
        ("!((bpf,a) | (bpf,b))", "!((bpf,a) | (bpf,b))"),
        ("(bpf as web,\n\t'x')", "(bpf as web,\"'x'\")"),
    ],
)
def test_what_is_written_as_it_is_printed(written: str, printed: str) -> None:
    assert text(parse(written)) == printed
    assert parse(printed) == parse(written)


def test_binding_is_looser_from_and_to_or_to_then() -> None:
    a, b, c, d = (parse(f"(bpf,{name})") for name in "abcd")
    assert parse("(bpf,a) & (bpf,b) | (bpf,c) -> (bpf,d)") == then(any_of(all_of(a, b), c), d)
    # Python's own operators bind otherwise, so `python` writes every parenthesis.
    assert python(then(any_of(a, b), c)) == "(bpf('a') | bpf('b')) >> bpf('c')"
    assert isinstance(any_of(a, b) >> c, Then)


def test_an_expression_is_neither_true_nor_false() -> None:
    with pytest.raises(ExpressionError) as error:
        parse("(bpf,a)") and parse("(bpf,b)")
    assert str(error.value) == (
        "a flow expression is neither true nor false\n"
        "help: use `|`, `&` and `~` between expressions, not `or`, `and` and `not`"
    )
    with pytest.raises(ExpressionError) as error:
        parse("(bpf,a)") >> "udp"  # type: ignore[operator]
    assert str(error.value) == (
        "`>>` joins flow expressions, got 'udp'\n"
        'help: nodes are made by their classes, as in `device("eth0") >> bpf("udp")`'
    )


BAD_TEXTS = [
    (
        "",
        "line 1, column 1: the expression is empty\n    \n    ^\nhelp: expected `(device,NAME)` first",
    ),
    (
        "  \n ",
        "line 2, column 2: the expression is empty\n     \n     ^\nhelp: expected `(device,NAME)` first",
    ),
    (
        "device",
        "line 1, column 1: unexpected `d`\n    device\n    ^\nhelp: expected `!` or `(`",
    ),
    (
        "()",
        "line 1, column 2: unexpected `)`\n    ()\n     ^\nhelp: expected `!` or `(` or a name",
    ),
    (
        "(device,eth0",
        "line 1, column 13: the expression ends too early\n"
        "    (device,eth0\n"
        "                ^\n"
        "help: expected `)` or `,`",
    ),
    (
        '(device,"eth0)',
        "line 1, column 9: the quoted expression does not end\n"
        '    (device,"eth0)\n'
        "            ^\n"
        'help: put a `"` at its end; inside it, `\\"` stands for `"`',
    ),
    (
        "(device,eth0) ->",
        "line 1, column 17: the expression ends too early\n"
        "    (device,eth0) ->\n"
        "                    ^\n"
        "help: expected `!` or `(`",
    ),
    (
        "-> (bpf)",
        "line 1, column 1: unexpected `-`\n    -> (bpf)\n    ^\nhelp: expected `!` or `(`",
    ),
    (
        "(device,eth0) (bpf)",
        "line 1, column 15: unexpected `(`\n"
        "    (device,eth0) (bpf)\n"
        "                  ^\n"
        "help: expected `&` or `->` or `|` or an edge as `-80->` or the end",
    ),
    (
        "(device,eth0) - (bpf)",
        "line 1, column 15: unexpected `-`\n"
        "    (device,eth0) - (bpf)\n"
        "                  ^\n"
        "help: expected `&` or `->` or `|` or an edge as `-80->` or the end",
    ),
    (
        "(device,eth0) => (bpf)",
        "line 1, column 15: unexpected `=`\n"
        "    (device,eth0) => (bpf)\n"
        "                  ^\n"
        "help: expected `&` or `->` or `|` or an edge as `-80->` or the end",
    ),
    (
        "(device,eth0) -> | (bpf)",
        "line 1, column 18: unexpected `|`\n"
        "    (device,eth0) -> | (bpf)\n"
        "                     ^\n"
        "help: expected `!` or `(`",
    ),
    (
        "(1bpf)",
        "line 1, column 2: unexpected `1`\n    (1bpf)\n     ^\nhelp: expected `!` or `(` or a name",
    ),
    (
        "(bpf as)",
        "line 1, column 8: unexpected `)`\n    (bpf as)\n           ^\nhelp: expected a name",
    ),
    (
        "(bpf as 1x)",
        "line 1, column 9: unexpected `1`\n    (bpf as 1x)\n            ^\nhelp: expected a name",
    ),
    (
        '(bpf,"x" y)',
        'line 1, column 10: unexpected `y`\n    (bpf,"x" y)\n             ^\nhelp: expected `)` or `,`',
    ),
    (
        "(bpf,x,8,9)",
        "line 1, column 9: unexpected `,`\n    (bpf,x,8,9)\n            ^\nhelp: expected `)`",
    ),
    (
        "!",
        "line 1, column 2: the expression ends too early\n    !\n     ^\nhelp: expected `!` or `(`",
    ),
    (
        "!(",
        "line 1, column 3: the expression ends too early\n    !(\n      ^\nhelp: expected `!` or `(` or a name",
    ),
    (
        "(xyzzy)",
        f"line 1, column 2: unknown node class `xyzzy`\n    (xyzzy)\n     ^\nhelp: the classes are {CLASS_LIST}",
    ),
    (
        "(bytecuont)",
        "line 1, column 2: unknown node class `bytecuont`\n    (bytecuont)\n     ^\nhelp: did you mean `bytecount`?",
    ),
    (
        "(device,eth0)\n -> (bpff,x)",
        "line 2, column 6: unknown node class `bpff`\n     -> (bpff,x)\n         ^\nhelp: did you mean `bpf`?",
    ),
    (
        "(bpf,,x)",
        "line 1, column 2: (bpf): `x` is not a number of bytes\n"
        "    (bpf,,x)\n"
        "     ^\n"
        "help: the third element is the node's memory in bytes, as in `(bytecount,,8)`",
    ),
    (
        "(bpf,,0)",
        "line 1, column 2: (bpf): `0` is not a number of bytes\n"
        "    (bpf,,0)\n"
        "     ^\n"
        "help: the third element is the node's memory in bytes, as in `(bytecount,,8)`",
    ),
    (
        "(bytecount,,4)",
        "line 1, column 2: (bytecount): 4 bytes of memory do not suit a `bytecount`\n"
        "    (bytecount,,4)\n"
        "     ^\n"
        "help: between 8 and 1048576 bytes",
    ),
    (
        "(bytecount as big,,2000000)",
        "line 1, column 2: (bytecount as big): 2000000 bytes of memory do not suit a `bytecount`\n"
        "    (bytecount as big,,2000000)\n"
        "     ^\n"
        "help: between 8 and 1048576 bytes",
    ),
    (
        "(sampler,x)",
        "line 1, column 2: (sampler): `x` is not a number of packets\n"
        "    (sampler,x)\n"
        "     ^\n"
        "help: `(sampler,10)` passes 1 packet in 10, `(sampler,p=0.1)` at random, `(sampler,flow=1/10)` 1 flow in 10",
    ),
    (
        "(sampler,0)",
        "line 1, column 2: (sampler): cannot sample 1 in 0\n"
        "    (sampler,0)\n"
        "     ^\n"
        "help: a whole number from 1 to 4294967295",
    ),
    (
        "(sampler,-1)",
        "line 1, column 2: (sampler): `-1` is not a number of packets\n"
        "    (sampler,-1)\n"
        "     ^\n"
        "help: `(sampler,10)` passes 1 packet in 10, `(sampler,p=0.1)` at random, `(sampler,flow=1/10)` 1 flow in 10",
    ),
    (
        "(grab,x)",
        "line 1, column 2: (grab): `x` is not a snaplen\n    (grab,x)\n     ^\nhelp: write `(grab,snaplen=96)`",
    ),
    (
        "(grab,70000)",
        "line 1, column 2: (grab): a snaplen of 70000 bytes\n"
        "    (grab,70000)\n"
        "     ^\n"
        "help: 1 to 65535 bytes, or 0 for whole packets",
    ),
    (
        "(packetcount,1)",
        "line 1, column 2: (packetcount): `packetcount` takes no expression, got `1`\n"
        "    (packetcount,1)\n"
        "     ^\n"
        "help: write `(packetcount)`",
    ),
    (
        "(device,)",
        "line 1, column 2: (device): no interface named\n    (device,)\n     ^\nhelp: write `(device,eth0)`",
    ),
    (
        "(device,eth0@foo)",
        "line 1, column 2: (device): unknown hook `foo`\n"
        "    (device,eth0@foo)\n"
        "     ^\n"
        "help: one of xdp, tc-ingress, tc-egress, as in `eth0@xdp`",
    ),
    (
        "(device,a/b/c)",
        "line 1, column 2: (device): `b/c` cannot be the name of an interface\n"
        "    (device,a/b/c)\n"
        "     ^\n"
        "help: 1 to 15 bytes without space, `/` and `:`; `ip link` lists the interfaces",
    ),
    (
        "(device,averylonginterfacename)",
        "line 1, column 2: (device): `averylonginterfacename` cannot be the name of an interface\n"
        "    (device,averylonginterfacename)\n"
        "     ^\n"
        "help: 1 to 15 bytes without space, `/` and `:`; `ip link` lists the interfaces",
    ),
]

BAD_GRAPHS = [
    (
        "(bpf,udp)",
        "(bpf): a path begins without a device\nhelp: put `(device,NAME) ->` before `(bpf)`",
    ),
    (
        "!(bpf,udp)",
        "a path begins without a device\nhelp: put `(device,NAME) ->` before `!`",
    ),
    (
        "(device,a) -> (device,b)",
        "(device): `b` stands behind another node\nhelp: devices come first: `(device,eth0) | (device,eth1) -> ...`",
    ),
    (
        "(device,a) | (bpf,udp) -> (grab)",
        "(bpf): a path begins without a device\nhelp: put `(device,NAME) ->` before `(bpf)`",
    ),
    (
        "(device,a) -> (grab) -> (packetcount)",
        "(packetcount): something follows a sink\n"
        "help: a sink such as `(grab)` ends its path; branch before it with `|`",
    ),
    (
        "(device,a) -> !(packetcount)",
        "(packetcount): `!` stands before `(packetcount)`, which does not decide\n"
        "help: `!` takes filters only, as in `!(bpf,udp)`",
    ),
    (
        "(device,a) -> !(grab)",
        "(grab): `!` stands before `(grab)`, which does not decide\nhelp: `!` takes filters only, as in `!(bpf,udp)`",
    ),
    (
        "(device,a) -> (bpf,udp) & (grab)",
        "`&` holds a sink, which passes nothing on\nhelp: put the sink behind: `a & b -> (grab)`",
    ),
    (
        "(device,a) -> (bpf as x) -> (grab as x)",
        "(grab as x): two nodes are called `x`\nhelp: give each node its own name",
    ),
    (
        "(device,a) -> (bpf,udp) | ((bpf,tcp) -> (grab) -> (grab))",
        "(grab): something follows a sink\nhelp: a sink such as `(grab)` ends its path; branch before it with `|`",
    ),
]


@pytest.mark.parametrize(("wrong", "said"), BAD_TEXTS)
def test_what_the_parser_says(wrong: str, said: str) -> None:
    with pytest.raises(ExpressionError) as error:
        parse(wrong)
    assert str(error.value) == said


@pytest.mark.parametrize(("wrong", "said"), BAD_GRAPHS)
def test_what_the_graph_says(wrong: str, said: str) -> None:
    with pytest.raises(ExpressionError) as error:
        build(parse(wrong))
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("wrong", "message", "help_text"),
    [
        ("(" * 101, "nested too deeply", "at most 100 open parentheses and `!`"),
        ("!" * 101 + "(bpf)", "nested too deeply", "at most 100 open parentheses and `!`"),
        (" " * (1 << 18) + "(bpf)", "an expression of 262,149 characters", "at most 262,144"),
        (
            f'(bpf,"{"x" * 16_385}")',
            "a filter of 16,385 bytes",
            "at most 16,384 bytes of text; split it into several nodes with `|`",
        ),
        ("(device,a)" + " -> (packetcount)" * 1000, "1,001 nodes in one flow", "at most 1,000"),
    ],
    ids=["parentheses", "inversions", "text", "filter", "nodes"],
)
def test_what_is_too_much(wrong: str, message: str, help_text: str) -> None:
    with pytest.raises(ExpressionError) as error:
        build(parse(wrong))
    assert (error.value.message, error.value.help) == (message, help_text)
