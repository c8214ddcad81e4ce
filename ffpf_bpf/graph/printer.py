"""Flow expression -> text, and -> Python. `parse(text(e)) == e`, and `eval(python(e)) == e`."""

from __future__ import annotations

from ffpf_bpf.graph.expression import OTHERS, AllOf, AnyOf, Expression, Node, Not, Ranges, Select, Then


def text(expression: Expression, *, hidden: bool = False) -> str:
    """The text form, with the parentheses it needs and no more; `hidden` leaves out secrets, for files and screens."""
    match expression:
        case Node():
            return _node_text(expression, hidden)
        case Then(stages=stages):
            return " -> ".join(_grouped(stage, hidden, Then) for stage in stages)
        case AnyOf(branches=branches):
            return " | ".join(_grouped(branch, hidden, Then, AnyOf, Select) for branch in branches)
        case AllOf(branches=branches):
            return " & ".join(_grouped(branch, hidden, Then, AnyOf, AllOf, Select) for branch in branches)
        case Not(inner=inner):
            return "!" + _grouped(inner, hidden, Then, AnyOf, AllOf, Select)
        case Select(node=node, cases=cases):
            edges = (f"-{results(ranges)}-> {_grouped(case, hidden, Then, AnyOf, Select)}" for ranges, case in cases)
            return f"{_node_text(node, hidden)} {' | '.join(edges)}"
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


def python(expression: Expression) -> str:
    """The Python form, every join inside a join in parentheses."""
    match expression:
        case Node():
            return _node_python(expression)
        case Then(stages=parts):
            return " >> ".join(_bracketed(part) for part in parts)
        case AnyOf(branches=parts):
            return " | ".join(_bracketed(part) for part in parts)
        case AllOf(branches=parts):
            return " & ".join(_bracketed(part) for part in parts)
        case Not(inner=inner):
            return "~" + _bracketed(inner)
        case Select(node=node, cases=cases):
            labelled = ", ".join(f"{_label(ranges)}: {python(case)}" for ranges, case in cases)
            return f"{_node_python(node)}.on({{{labelled}}})"
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


def _node_text(node: Node, hidden: bool) -> str:
    head = f"{node.class_name} as {node.name}" if node.name else node.class_name
    expression = _quoted(node.shown_expression if hidden else node.expression)
    rest, _, word = node.expression.rpartition(",")
    if word and word == node.word and node.mbuf_bytes == node.default_mbuf_bytes:
        return f"({head},{_quoted(rest)},{word})"
    if node.mbuf_bytes != node.default_mbuf_bytes:
        return f"({head},{expression},{node.mbuf_bytes})"
    return f"({head},{expression})" if expression else f"({head})"


def _node_python(node: Node) -> str:
    arguments = [*node.arguments]
    if node.name:
        arguments.append(f"name={node.name!r}")
    if node.mbuf_bytes != node.default_mbuf_bytes:
        arguments.append(f"mbuf_bytes={node.mbuf_bytes}")
    return f"{node.class_name}({', '.join(arguments)})"


def _quoted(expression: str) -> str:
    bare = all(character.isalnum() or character in "=@._/:-" for character in expression)
    if bare:
        return expression
    escaped = expression.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def results(ranges: Ranges) -> str:
    """What stands between `-` and `->`."""
    return "*" if ranges == OTHERS else ",".join(f"{low}..{high}" if low < high else str(low) for low, high in ranges)


def _label(ranges: Ranges) -> str:
    if ranges == OTHERS:
        return "'*'"
    parts = [f"range({low}, {high + 1})" if low < high else str(low) for low, high in ranges]
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _grouped(expression: Expression, hidden: bool, *kinds: type[Expression]) -> str:
    inner = text(expression, hidden=hidden)
    return f"({inner})" if isinstance(expression, kinds) else inner


def _bracketed(expression: Expression) -> str:
    inner = python(expression)
    return f"({inner})" if isinstance(expression, Then | AnyOf | AllOf) else inner
