"""Flow expression -> text, and -> Python. `parse(text(e)) == e`, and `eval(python(e)) == e`."""

from __future__ import annotations

from ffpf_bpf.graph.expression import AllOf, AnyOf, Expression, Node, Not, Then


def text(expression: Expression) -> str:
    """The text form, with the parentheses it needs and no more."""
    match expression:
        case Node():
            return _node_text(expression)
        case Then(stages=stages):
            return " -> ".join(_grouped(stage, Then) for stage in stages)
        case AnyOf(branches=branches):
            return " | ".join(_grouped(branch, Then, AnyOf) for branch in branches)
        case AllOf(branches=branches):
            return " & ".join(_grouped(branch, Then, AnyOf, AllOf) for branch in branches)
        case Not(inner=inner):
            return "!" + _grouped(inner, Then, AnyOf, AllOf)
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
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


def _node_text(node: Node) -> str:
    head = f"{node.class_name} as {node.name}" if node.name else node.class_name
    if node.mbuf_bytes != node.least_mbuf_bytes:
        return f"({head},{_quoted(node.expression)},{node.mbuf_bytes})"
    return f"({head},{_quoted(node.expression)})" if node.expression else f"({head})"


def _node_python(node: Node) -> str:
    arguments = [*node.arguments]
    if node.name:
        arguments.append(f"name={node.name!r}")
    if node.mbuf_bytes != node.least_mbuf_bytes:
        arguments.append(f"mbuf_bytes={node.mbuf_bytes}")
    return f"{node.class_name}({', '.join(arguments)})"


def _quoted(expression: str) -> str:
    bare = all(character.isalnum() or character in "=@._/:-" for character in expression)
    if bare:
        return expression
    escaped = expression.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _grouped(expression: Expression, *kinds: type[Expression]) -> str:
    inner = text(expression)
    return f"({inner})" if isinstance(expression, kinds) else inner


def _bracketed(expression: Expression) -> str:
    inner = python(expression)
    return f"({inner})" if isinstance(expression, Then | AnyOf | AllOf) else inner
