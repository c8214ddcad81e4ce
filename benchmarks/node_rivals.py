"""The rivals of node classes: programs of `handwritten/` that do what a class does and count like a flow, with the maps
that they want.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from benchmarks import rivals
from ffpf_bpf import compiler
from ffpf_bpf.compiler.object import Object
from ffpf_bpf.graph.memory import SCRATCH_BYTES, TAP_BYTES
from ffpf_bpf.kernel import calls
from ffpf_bpf.kernel.holders import TAP_MAP
from ffpf_bpf.kernel.maps import Descriptor, MappedArray, ProgArray
from ffpf_bpf.kernel.programs import Binding, load
from ffpf_bpf.kernel.tap import LINKS, NEXT

STATE_WORDS, CPUS = 8, 128  # struct state in handwritten/wire.h, in 64-bit words: so many, then so many for each CPU
SEEN, PASSED, FILTERED, OWN = 0, 1, 3, 4  # struct counts there
HEAD, TAIL = OWN, OWN + 1  # of a ring of its own, handwritten/ring.h
RECORD_BYTES = 16  # struct record there, before its data
PERCPU_ARRAY, LRU_HASH, RINGBUF = 6, 9, 27  # <linux/bpf.h>
RINGBUF_BYTES = 4 << 20
compile_c = cache(rivals.compile_c)


@dataclass(frozen=True, slots=True)
class Global:
    """Memory that the program knows as a variable; it begins with `contents`."""

    size_bytes: int
    contents: bytes = b""


@dataclass(frozen=True, slots=True)
class Map:
    """A map of the kernel's."""

    kind: int
    key_bytes: int
    value_bytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class Records:
    """Where a grabbing rival puts records of up to `snaplen` bytes: `slots` for each CPU, or with 0 a BPF ring buffer
    of 4 MiB."""

    snaplen: int
    slots: int = 0

    @property
    def record_bytes(self) -> int:
        return (RECORD_BYTES + self.snaplen + 7) // 8 * 8


@dataclass(frozen=True, slots=True)
class Rival:
    """`handwritten/NAME.c` with its options and maps, and `how` it does it. `own` names what it counts besides, as node
    classes name it."""

    name: str
    options: tuple[str, ...] = ()
    maps: Mapping[str, Global | Map] = field(default_factory=dict)
    how: str = ""
    own: tuple[str, ...] = ()
    records: Records | None = None

    def compiled(self, *, chained: bool = False) -> Object:
        """The program; if `chained` it goes on to what follows in a chain."""
        options = ("-DCHAINED", *self.options) if chained else self.options
        if self.records is not None:
            ring = (f"-DOWN_RING={self.records.slots}",) if self.records.slots else ()
            options = (*options, f"-DSNAPLEN={self.records.snaplen}", *ring)
        return compile_c(self.name, "-DWITH_DUTIES", *options)


class LoadedRival:
    """A rival in the kernel, switched on. `seed` keys its hashes of flows. If `chained` it is the one segment of a
    chain like a tap's, and `program` that chain's entry program."""

    def __init__(self, rival: Rival, seed: int, *, chained: bool = False) -> None:
        self.rival = rival
        with ExitStack() as stack:
            state = stack.enter_context(MappedArray("state", 8 * STATE_WORDS * (1 + CPUS)))
            state.memory[0] = state.memory[4] = 1
            state.memory[8:16] = seed.to_bytes(8, "little")
            self._words = np.frombuffer(state.memory, np.uint64, STATE_WORDS * (1 + CPUS)).reshape(-1, STATE_WORDS)[1:]
            self._maps: dict[str, Descriptor] = {}
            bindings = {"state": Binding(state, True)}
            for name, wanted in rival.maps.items():
                self._maps[name] = stack.enter_context(_made(name, wanted))
                bindings[name] = Binding(self._maps[name], isinstance(wanted, Global))
            if rival.records is not None:
                self._records = stack.enter_context(_ring(rival.records))
                bindings["records"] = Binding(self._records, False)
            if chained:
                bindings["links"] = Binding(stack.enter_context(ProgArray("links", LINKS)), False)
            program = stack.enter_context(load(rival.compiled(chained=chained).programs["filter"], bindings))
            self.program = (stack.enter_context(_behind_entry(program)) if chained else program).fileno
            self._stack = stack.pop_all()

    def totals(self) -> dict[str, int]:
        """What it counted, on all CPUs together."""
        sums = [int(total) for total in self._words.sum(axis=0)]
        own = {name: sums[OWN + number] for number, name in enumerate(self.rival.own)}
        return {"seen": sums[SEEN], "passed": sums[PASSED], "left out": sums[FILTERED], **own}

    def values(self, name: str) -> list[int]:
        """The values of a map of counters, on all CPUs together."""
        wanted = self.rival.maps[name]
        assert isinstance(wanted, Map)
        values = (ctypes.c_uint64 * calls.possible_cpus())()
        found = []
        for number in range(wanted.entries):
            key = ctypes.c_uint32(number)
            calls.library().bpf_map_lookup_elem(self._maps[name].fileno, ctypes.byref(key), values)
            found.append(sum(values))
        return found

    def drain(self) -> None:
        """Give all records back."""
        if self.rival.records is None:
            return
        if self.rival.records.slots:
            self._words[:, TAIL] = self._words[:, HEAD]
            return
        ring = self._records.fileno
        with mmap.mmap(ring, mmap.PAGESIZE) as consumer, _producer(ring) as producer:
            consumer[:8] = producer[:8]

    def records(self) -> list[tuple[int, bytes]] | None:
        """Length on the wire and bytes of each record in its own ring, which it gives back; None if it has no ring of
        its own."""
        records = self.rival.records
        if records is None or not records.slots:
            return None
        assert isinstance(self._records, MappedArray)
        size, found = records.record_bytes, []
        for cpu, words in enumerate(self._words[: calls.possible_cpus()]):
            for number in range(int(words[TAIL]), int(words[HEAD])):
                at = (cpu * records.slots + number % records.slots) * size
                record = self._records.memory[at : at + size]
                captured, original = (int.from_bytes(record[place : place + 4], "little") for place in (8, 12))
                found.append((original, bytes(record[RECORD_BYTES : RECORD_BYTES + captured])))
        self.drain()
        return found

    def __enter__(self) -> LoadedRival:
        return self

    def __exit__(self, *failure: object) -> None:
        del self._words
        self._stack.close()


@contextmanager
def _behind_entry(program: Descriptor) -> Iterator[Descriptor]:
    """An entry program, switched on, that `program` follows."""
    cpus = calls.possible_cpus()
    entry = compiler.compile_entry(cpus).programs[compiler.ENTRY_PROGRAM]
    with MappedArray(TAP_MAP, TAP_BYTES + cpus * SCRATCH_BYTES) as control, ProgArray("ffpf_links", LINKS) as links:
        control.memory[0] = 1
        links.set(NEXT, program)
        with load(entry, {TAP_MAP: Binding(control, True), "ffpf_links": Binding(links, False)}) as loaded:
            yield loaded


def _made(name: str, wanted: Global | Map) -> Descriptor:
    if isinstance(wanted, Map):
        return Descriptor(calls.create_map(wanted.kind, name, wanted.key_bytes, wanted.value_bytes, wanted.entries))
    made = MappedArray(name, wanted.size_bytes)
    made.memory[: len(wanted.contents)] = wanted.contents
    return made


def _ring(records: Records) -> Descriptor:
    if records.slots:
        return MappedArray("records", records.record_bytes, records.slots * calls.possible_cpus())
    return Descriptor(calls.create_map(RINGBUF, "records", 0, 0, RINGBUF_BYTES))


def _producer(ring: int) -> mmap.mmap:
    return mmap.mmap(ring, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
