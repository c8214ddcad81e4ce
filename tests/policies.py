"""Texts of policy files."""

from __future__ import annotations


def rule(keys: str = "", **changed: str) -> str:
    """A rule that allows everything, with some keys changed and some added."""
    parts = {
        "name": '"r"',
        "subjects": '["*"]',
        "taps": '["*@*"]',
        "classes": '["*"]',
        "allow": '"everything"',
        **changed,
    }
    return "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in parts.items()) + keys + "\n"
