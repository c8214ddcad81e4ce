"""What a guest need not compile: LLVM makes the same of the same text on every kernel, and takes ten times as long where
the processor is emulated. So a guest takes what earlier ones made, and sends back what is new.

A key is of all that has a say: the text, and everything in the compiler's directory. What is a week old goes.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ffpf_bpf import compiler
from ffpf_bpf.compiler import Object
from tests.vm.kernels import FRESH_FOR_S

DIRECTORY = "objects"
KNOWN = "FFPF_VM_OBJECTS"  # in a guest's environment: where those of earlier guests are


def reuse(known: Path, new: Path) -> None:
    """In a guest: compile what is not in `known`, and leave it in `new` as well."""
    compile_text = compiler._compile_text

    @cache
    def found_or_made(text: str, primitives: frozenset[str], programs: tuple[str, ...]) -> Object:
        key = hashlib.sha256(repr((text, sorted(primitives), programs)).encode() + _compiler()).hexdigest()
        if (known / key).exists():
            found: Object = pickle.loads((known / key).read_bytes())
            return found
        made = compile_text(text, primitives, programs)
        new.mkdir(exist_ok=True)
        (new / key).write_bytes(pickle.dumps(made))
        return made

    compiler._compile_text = found_or_made  # type: ignore[assignment]


@cache
def _compiler() -> bytes:
    """The digest of the compiler, primitives included."""
    directory = Path(compiler.__file__).parent
    digest = hashlib.sha256()
    for path in sorted((*directory.glob("*.py"), *directory.glob("bitcode/*.bc"))):
        digest.update(path.read_bytes())
    return digest.digest()


def keep(results: Mapping[str, bytes], known: Path) -> None:
    """On the host: what a guest sent."""
    known.mkdir(parents=True, exist_ok=True)
    for name, contents in results.items():
        directory, _, key = name.rpartition("/")
        if directory == DIRECTORY and key.isalnum():
            whole = known / f"{key}.new"
            whole.write_bytes(contents)
            whole.rename(known / key)


def forget(known: Path) -> None:
    """What is old: nothing else removes it."""
    for path in known.glob("*"):
        if path.stat().st_mtime < time.time() - FRESH_FOR_S:
            path.unlink(missing_ok=True)


def reuse_in_guest(results: Path) -> None:
    """As the environment says; nothing outside of a guest."""
    if known := os.environ.get(KNOWN):
        reuse(Path(known), results / DIRECTORY)
