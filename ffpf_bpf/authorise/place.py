"""Where in a TOML text a key or an element stands: what tomllib forgets and an error message needs.

`places(text)` maps paths such as `("rule", 0, "limits", "snaplen")` to offsets. The text must be one that tomllib
accepts: this reads structure only and checks nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right

Path = tuple[str | int, ...]

BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
STRING = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.DOTALL)
WORD = re.compile(r"[A-Za-z0-9_-]+")
SCALAR = re.compile(r"[^,\]}#\n]*")


def places(text: str) -> dict[Path, int]:
    """The offset of each key, `[[table]]` header and array element of `text`."""
    return _Scanner(text).scan()


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Both from 1."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


class Places:
    """Where the parts of one file are, as `students.toml:12:1`."""

    def __init__(self, text: str, file: str) -> None:
        self._file = file
        self._places = places(text)
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def offset(self, path: Path) -> int:
        """Of the path, or of the innermost part of it that is in the text: one value may stand for a list of one."""
        found: Path = ()
        for part in path:
            if (*found, part) in self._places:
                found += (part,)
        return self._places.get(found, 0)

    def where(self, path: Path) -> str:
        offset = self.offset(path)
        line = bisect_right(self._lines, offset)
        return f"{self._file}:{line}:{offset - self._lines[line - 1] + 1}"


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places: dict[Path, int] = {}
        self.tables: dict[Path, int] = {}  # the index of the last [[table]] of a path

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip() < len(self.text):
            table = self._header() if self.text[self.at] == "[" else self._pair(table)
        return self.places

    def _header(self) -> Path:
        start, many = self.at, self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        *parents, last = self._key()
        self._skip()
        self.at += 2 if many else 1
        table: Path = ()
        for part in parents:
            table += (part,)
            table += (self.tables[table],) if table in self.tables else ()
        table += (last,)
        self.places.setdefault(table, start)
        if many:
            self.tables[table] = self.tables.get(table, -1) + 1
            table += (self.tables[table],)
            self.places[table] = start
        return table

    def _pair(self, table: Path) -> Path:
        start, path = self.at, table
        for part in self._key():
            path += (part,)
            self.places.setdefault(path, start)
        self._skip()
        self.at += 1  # the equals sign
        self._value(path)
        return table

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip()
            if match := STRING.match(self.text, self.at):
                parts.append(match[0][1:-1])
            elif match := WORD.match(self.text, self.at):
                parts.append(match[0])
            else:
                raise ValueError(f"no key at {self.at}")
            self.at = match.end()
            if self._skip() >= len(self.text) or self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, path: Path) -> None:
        self._skip()
        opening = self.text[self.at]
        if opening not in "[{":
            match = STRING.match(self.text, self.at) or SCALAR.match(self.text, self.at)
            assert match
            self.at = match.end()
            return
        self.at += 1
        count = 0
        while self.text[self._skip()] not in "]}":
            if opening == "[":
                self.places[(*path, count)] = self.at
                self._value((*path, count))
                count += 1
            else:
                self._pair(path)
            if self.text[self._skip()] == ",":
                self.at += 1
        self.at += 1

    def _skip(self) -> int:
        match = BLANK.match(self.text, self.at)
        assert match
        self.at = match.end()
        return self.at
