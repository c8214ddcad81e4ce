"""What a flow and a capture file have in common: batches, and everything that is made of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.capture.ring import Batch

Idle = Callable[[], bool]


class Deliverer(ABC):
    """Gives packets. `duration_s` and `idle` are those of `batches`."""

    @property
    @abstractmethod
    def interfaces(self) -> tuple[str, ...]:
        """Names; a record's `interface`, less `first_interface`, is an index into them."""

    first_interface: int

    @abstractmethod
    def batches(self, *, duration_s: float | None = None, idle: Idle | None = None) -> Iterator[Batch]:
        """Packets as they come, in numpy batches, each valid until the next one."""

    def packets(self, *, duration_s: float | None = None, idle: Idle | None = None) -> Iterator[Packet]:
        """Packets one at a time, as copies. For speed use `batches`."""
        for batch in self.batches(duration_s=duration_s, idle=idle):
            yield from list(batch.packets(self.interfaces, self.first_interface))
