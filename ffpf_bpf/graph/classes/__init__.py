"""The node classes: one module each, found by being here.

A module `NAME.py` of this package holds the one `Node` subclass whose `class_name` is `NAME`.
"""

from __future__ import annotations

import importlib
import pkgutil

from ffpf_bpf.graph.expression import Node


def _discover() -> dict[str, type[Node]]:
    found: dict[str, type[Node]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        classes = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Node) and value.__module__ == module.__name__
        ]
        if len(classes) != 1 or classes[0].class_name != module_info.name:
            raise ImportError(f"{module.__name__} must define one Node whose class_name is {module_info.name!r}")
        found[module_info.name] = classes[0]
    return found


CLASSES: dict[str, type[Node]] = _discover()
