"""TOML text -> a pydantic model, or a PolicyError with file, line, column and what to do.

For policies (`schema.py`) and for their tests (`trials.py`): an unknown key, a value of another type and what a check
of the model finds are errors; the first one in the file is told.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ffpf_bpf.authorise.mistake import MISTAKE, nearest, quoted
from ffpf_bpf.authorise.packets import Table
from ffpf_bpf.authorise.place import Path, Places, line_and_column
from ffpf_bpf.authorise.policy import PolicyError
from ffpf_bpf.authorise.shallow import check_shallow

BOM = "\ufeff"  # some editors begin a file with it
Model = TypeVar("Model", bound=Table)


@dataclass(frozen=True, slots=True)
class Form(Generic[Model]):
    """What a file may say: the model of the whole, the tables in it by their keys, help for each key, and the key whose
    help is for all others."""

    file: type[Model]
    tables: Mapping[str, type[Table]]
    help: Mapping[str, str]
    key: str


def read_toml(text: str, file: str, form: Form[Model]) -> tuple[Model, Places]:
    """What a text says, and where in it; `file` is its name in errors. Raises PolicyError."""
    text = text.removeprefix(BOM)
    check_shallow(text, file)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _syntax_error(error, text, file) from None
    places = Places(text, file)
    try:
        return form.file.model_validate(table), places
    except ValidationError as error:
        raise _explained(error, places, form) from None


def _explained(error: ValidationError, places: Places, form: Form[Model]) -> PolicyError:
    """The first mistake. What is missing comes last: it is often there, misspelled."""
    found = [(_path(detail), detail) for detail in error.errors(include_url=False, include_input=False)]
    path, detail = min(found, key=lambda one: (one[1]["type"] == "missing", places.offset(one[0])))
    message, help = _message_and_help(detail, form)
    return PolicyError(message, where=places.where(path), help=help)


def _path(detail: ErrorDetails) -> Path:
    return (*detail["loc"], *detail["ctx"]["at"]) if detail["type"] == MISTAKE else detail["loc"]


def _message_and_help(detail: ErrorDetails, form: Form[Model]) -> tuple[str, str]:
    """Of what pydantic found."""
    names = [part for part in detail["loc"] if isinstance(part, str)]
    key = names[-1] if names else ""
    known = next((name for name in reversed(names) if name in form.help), form.key)
    match detail["type"]:
        case "policy":
            return detail["ctx"]["message"], detail["ctx"]["help"]
        case "extra_forbidden":
            table = form.tables.get(names[-2], form.file) if len(names) > 1 else form.file
            keys = [field.alias or name for name, field in table.model_fields.items()]
            return f"unknown key {quoted(key)}", nearest(key, keys, "the keys are")
        case "missing":
            return f"`{key}` is missing", form.help[key]
        case "too_short":
            return f"`{key}` is empty, which allows nothing", form.help[key]
        case "model_type":
            return f"`{known}`: input should be a table", form.help[known]
        case _:
            return f"`{known}`: {detail['msg'][:1].lower()}{detail['msg'][1:]}", form.help[known]


def _syntax_error(error: Exception, text: str, file: str) -> PolicyError:
    # Python's message ends in `(at line 3, column 7)` or `(at end of document)`.
    what, _, place = str(error).partition(" (at ")
    if numbers := re.match(r"line (\d+), column (\d+)", place):
        line, column = int(numbers[1]), int(numbers[2])
    else:
        line, column = line_and_column(text, len(text)) if place else (1, 1)
    if isinstance(error, RecursionError):
        what = "nested too deeply"
    return PolicyError(
        f"not TOML: {what[:1].lower()}{what[1:]}",
        where=f"{file}:{line}:{column}",
        help="https://toml.io has the syntax",
    )
