"""Text -> flow expression.

    flow   := part ("->" part)*
    part   := stage | node select ("|" select)*
    stage  := term ("|" term)*                       any of them
    term   := fact ("&" fact)*                       all of them
    fact   := "!" fact | node | "(" flow ")"
    node   := "(" class ["as" name] ["," expression ["," mbuf_bytes]] ")"
    select := "-" results "->" term                  for these results of the node
    results := "*" | range ("," range)*
    range  := number [".." number]                  decimal, or hexadecimal as 0x0800

Class names ignore case. An expression is bare up to `,` or `)`, or a double-quoted string with `\\"` and `\\\\`.
Every error says where: line and column of the text, with the line and a caret under it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn, TypeVar

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.expression import (
    OTHERS,
    Expression,
    Node,
    Not,
    Ranges,
    Select,
    all_of,
    any_of,
    check_text,
    label_ranges,
    then,
)

Made = TypeVar("Made")
LONGEST_TEXT = 1 << 18
DEEPEST_NESTING = 100
LONGEST_NUMBER = 10  # digits
NUMBER = "[0-9]{1,6}|0x[0-9A-Fa-f]{1,6}"
EDGES = "write `-80->`, `-80,443->`, `-8000..8080->`, or `-*->` for all others"

SIGNS = {"&&": "&", "||": "|", "and": "&", "or": "|", "not": "!"}
OTHER_SIGNS = re.compile(r"&&|\|\||\b(?:and|or|not)\b", re.IGNORECASE)

GRAMMAR = r"""
    flow: part ("->" part)*
    part: stage [select ("|" select)*]
    select: EDGE term
    EDGE: /-[^->()"|&!][^>()"|&!]*?->/
    stage: term ("|" term)*
    term: fact ("&" fact)*
    ?fact: "!" fact -> inverted
         | node
         | "(" flow ")"
    node: "(" NAME [_AS NAME] ["," [expression] ["," [MBUF]]] ")"
    expression: STRING | BARE
    NAME: /[A-Za-z_][A-Za-z0-9_-]*/
    _AS: /as(?![A-Za-z0-9_-])/
    MBUF: /[^,()"\s]+/
    STRING: /"(\\.|[^"\\])*"/s
    BARE: /[^\s,)"](?:[^,)]*[^\s,)])?/
    %ignore /\s+/
"""

WORDS = {
    "LPAR": "`(`",
    "RPAR": "`)`",
    "COMMA": "`,`",
    "VBAR": "`|`",
    "AMPERSAND": "`&`",
    "BANG": "`!`",
    "NAME": "a name",
    "_AS": "`as`",
    "STRING": "a quoted expression",
    "BARE": "an expression",
    "MBUF": "a number of bytes",
    "EDGE": "an edge as `-80->`",
    "__ANON_0": "`->`",
    "$END": "the end",
}


def parse(text: str) -> Expression:
    """The expression that `text` says. Raises ExpressionError with line, column and what to do."""
    check_text(text, "")
    if len(text) > LONGEST_TEXT:
        raise ExpressionError(f"an expression of {len(text):,} characters", help=f"at most {LONGEST_TEXT:,}")
    _check_nesting(text)
    try:
        tree = _grammar().parse(text)
    except UnexpectedInput as error:
        _refuse(text, error)
    return _Reader(text).flow(tree)


@cache
def _grammar() -> Lark:
    return Lark(GRAMMAR, start="flow", parser="lalr", maybe_placeholders=True, propagate_positions=True)


class _Reader:
    """Turns the syntax tree into values, remembering the text for errors."""

    def __init__(self, text: str) -> None:
        self.text = text

    def flow(self, tree: Tree[Token]) -> Expression:
        return then(*(self.part(child) for child in _trees(tree)))

    def part(self, tree: Tree[Token]) -> Expression:
        stage, *selects = _trees(tree)
        first = self.stage(stage)
        if not selects:
            return first
        position = selects[0].children[0].start_pos or 0  # type: ignore[union-attr]
        if not isinstance(first, Node):
            raise ExpressionError(
                "an edge that selects follows one node",
                **_place(self.text, position),
                help="put parentheses around what stands before: `(a) | ((classify,dport) -80-> (b))`",
            )
        cases = []
        for select in selects:
            edge, behind = select.children
            assert isinstance(edge, Token)
            assert isinstance(behind, Tree)
            cases.append((self.results(edge), self.term(behind)))
        return self._placed(position, lambda: Select(first, tuple(cases)))

    def results(self, edge: Token) -> Ranges:
        """The ranges between `-` and `->`."""
        text = edge[1:-2].strip()
        if text == "*":
            return OTHERS
        found: list[tuple[int, int]] = []
        for part in text.split(","):
            ends = re.fullmatch(rf"\s*({NUMBER})\s*(?:\.\.\s*({NUMBER})\s*)?", part)
            if ends is None:
                is_name = re.search("[A-Za-z]", part) is not None
                raise ExpressionError(
                    f"`{part.strip()}` is no result",
                    **_place(self.text, edge.start_pos or 0),
                    help=f"{'results are numbers, no name is looked up: ' if is_name else ''}{EDGES}",
                )
            low, high = _number(ends[1]), _number(ends[2] or ends[1])
            if low > high:
                raise ExpressionError(
                    f"`{part.strip()}` runs backwards",
                    **_place(self.text, edge.start_pos or 0),
                    help=f"write `{high}..{low}`",
                )
            label = range(low, high + 1) if low < high else low
            found += self._placed(edge.start_pos or 0, lambda label=label: label_ranges(label))  # type: ignore[misc]
        return tuple(found)

    def _placed(self, position: int, make: Callable[[], Made]) -> Made:
        """What `make` makes, its errors with their place in the text."""
        try:
            return make()
        except ExpressionError as error:
            place = _place(self.text, position)
            place["where"] += f": {error.where}"
            raise ExpressionError(error.message, help=error.help, **place) from None

    def stage(self, tree: Tree[Token]) -> Expression:
        return any_of(*(self.term(child) for child in _trees(tree)))

    def term(self, tree: Tree[Token]) -> Expression:
        return all_of(*(self.fact(child) for child in _trees(tree)))

    def fact(self, tree: Tree[Token]) -> Expression:
        match tree.data:
            case "inverted":
                return Not(self.fact(_trees(tree)[0]))
            case "flow":
                return self.flow(tree)
            case "node":
                return self.node(tree)
            case other:
                raise TypeError(f"the grammar has no rule {other}")

    def node(self, tree: Tree[Token]) -> Node:
        class_token, name, expression, mbuf = tree.children
        assert isinstance(class_token, Token)
        node_class = CLASSES.get(class_token.lower())
        if node_class is None:
            near = difflib.get_close_matches(class_token.lower(), CLASSES, n=1)
            raise ExpressionError(
                f"unknown node class `{class_token}`",
                **_place(self.text, class_token.start_pos or 0),
                help=f"did you mean `{near[0]}`?" if near else f"the classes are {', '.join(CLASSES)}",
            )
        has_word = bool(node_class.word) and mbuf == node_class.word
        text = _expression(expression) + (f",{node_class.word}" if has_word else "")
        memory = None if has_word else mbuf
        return self._placed(
            class_token.start_pos or 0,
            lambda: node_class.parse(text, name=str(name or ""), mbuf_bytes=_mbuf_bytes(memory, node_class)),
        )


def _number(text: str) -> int:
    return int(text, 16 if text.startswith("0x") else 10)


def _trees(tree: Tree[Token]) -> list[Tree[Token]]:
    return [child for child in tree.children if isinstance(child, Tree)]


def _expression(tree: Any) -> str:
    if tree is None:
        return ""
    token = str(tree.children[0])
    if tree.children[0].type == "BARE":
        return token
    return "".join(_unescaped(token[1:-1]))


def _unescaped(text: str) -> list[str]:
    characters, escaped = [], False
    for character in text:
        if character == "\\" and not escaped:
            escaped = True
            continue
        # Only `\"` and `\\` are escapes; in `\tcp`, pcap's own, the backslash stays.
        characters.append("\\" + character if escaped and character not in '"\\' else character)
        escaped = False
    return characters


def _mbuf_bytes(token: Any, node_class: type[Node]) -> int:
    if token is None:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) <= LONGEST_NUMBER) or int(token) == 0:
        raise ExpressionError(
            f"`{token}` is not a number of bytes",
            where=f"({node_class.class_name})",
            help="the third element is the node's memory in bytes, as in `(bytecount,,8)`",
        )
    return int(token)


def _check_nesting(text: str) -> None:
    """Refuse what would exhaust the stack of whoever walks the value."""
    depth = inversions = 0
    quoted = escaped = False
    for position, character in enumerate(text):
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif not character.isspace():
            quoted = character == '"'
            depth += (character == "(") - (character == ")")
            inversions = inversions + 1 if character == "!" else 0
        if depth + inversions > DEEPEST_NESTING:
            raise ExpressionError(
                "nested too deeply",
                **_place(text, position),
                help=f"at most {DEEPEST_NESTING} open parentheses and `!`",
            )


def _refuse(text: str, error: UnexpectedInput) -> NoReturn:
    match error:
        case UnexpectedToken():
            at_end = error.token.type == "$END"
            what = "the expression ends too early" if at_end else f"unexpected `{_visible(error.token[0])}`"
            position = len(text) if at_end else error.pos_in_stream or 0
            expected = error.accepts or error.expected
        case UnexpectedCharacters():
            what, position, expected = (
                f"unexpected `{_visible(error.char)}`",
                error.pos_in_stream or 0,
                error.allowed or set(),
            )
        case UnexpectedEOF():
            what, position, expected = "the expression ends too early", len(text), set(error.expected)
        case _:
            raise error
    words = " or ".join(sorted({WORDS.get(name, name) for name in expected}))
    help = f"expected {words}" if words else "nothing more; quote an expression that contains `)` or `,`"
    if not text.strip():
        what, help = "the expression is empty", "expected `(device,NAME)` first"
    elif other := OTHER_SIGNS.search(text, max(0, position - 1), position + 4):
        help = f"write `{SIGNS[other[0].lower()]}` instead of `{other[0]}`"
    elif text.startswith('"', position):
        what, help = "the quoted expression does not end", 'put a `"` at its end; inside it, `\\"` stands for `"`'
    raise ExpressionError(what, **_place(text, position), help=help) from None


def _visible(character: str) -> str:
    """The character, or a stand-in of one column for what a terminal would obey."""
    return character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"


def _place(text: str, offset: int) -> dict[str, str]:
    """Where an error is: line and column, and the line itself with a caret below."""
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    line = "".join(map(_visible, text[start : end if end >= 0 else len(text)]))
    column = offset - start
    window = max(0, column - 60)
    return {
        "where": f"line {text.count(chr(10), 0, offset) + 1}, column {column + 1}",
        "excerpt": f"    {line[window : window + 100]}\n    {' ' * (column - window)}^",
    }
