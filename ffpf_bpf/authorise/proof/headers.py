"""What `classify` and `tcpflags` find in a packet, as formulas: the dissector of the programs, bpf_src/dissect.c.

It looks at more than the reference dissection: an IP header must be whole and valid, and IPv6 extension headers are
walked through. A field is exact but behind extension headers: there it is free, as if it came by chance, and what it is
behind a single one of 8 bytes is told apart, for packets that show why a proof fails.
"""

from __future__ import annotations

from functools import cached_property

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import there
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import TCP, WITH_PORTS, Field, Wire, one_of
from ffpf_bpf.graph.effect import NO_RESULT

RESULT_BITS = 17
NONE = t.const(NO_RESULT, RESULT_BITS)
LARGEST_RESULT = NO_RESULT - 1
# Next headers behind which the program looks on for the transport header.
WALKED = (0, 43, 44, 51, 60, 135)
OF_TRANSPORT = ("proto", "dport", "sport", "tcpflags")  # and `tcpflags` itself


class Headers:
    """The headers of the packet `p`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def field(self, name: str) -> Term | None:
        """The result of `classify` by that field, exact where `is_told`; None for `flow`, which is a hash."""
        match name:
            case "length":
                size = t.length()
                longest = t.const(LARGEST_RESULT, RESULT_BITS)
                return t.ite(t.at_least(size, NO_RESULT), longest, t.extract(size, RESULT_BITS - 1, 0))
            case "ethertype":
                return self._ethertype
            case "vlan":
                tag = t.extract(self._wire.bytes_at(14, 2), 11, 0)
                whole = t.all_of((self._wire.tagged(0), there(18)))
                return t.ite(whole, t.widened(tag, RESULT_BITS), NONE)
            case "version":
                return self._of_ip(t.const(4, RESULT_BITS), t.const(6, RESULT_BITS))
            case "ttl":
                return self._of_ip(self._ip(8), self._ip(7))
            case "dscp":
                low = t.extract(self._ip(0), 3, 0), t.extract(self._ip(1), 7, 6)
                return self._of_ip(t.extract(self._ip(1), 7, 2), t.concat(*low))
            case "proto":
                return self._of_ip(self._wire.protocol4.value, t.ite(self._is_cut, self._next, self._protocol6))
            case "dport" | "sport":
                ports = self._wire.ports
                has = t.all_of((self._has_transport(*WITH_PORTS), ports[1].there))
                return t.ite(has, t.widened(ports[name == "dport"].value, RESULT_BITS), NONE)
            case "tcpflags":
                return t.ite(self.is_segment, t.widened(self.flags, RESULT_BITS), NONE)
        return None

    def behind_extension(self, name: str) -> Term:
        """The result where `has_one_extension`."""
        match name:
            case "proto":
                return t.widened(self._inner, RESULT_BITS)
            case "dport" | "sport":
                has = t.all_of((one_of(self._inner, WITH_PORTS), self._extended(2, 2).there))
                port = self._extended(2 if name == "dport" else 0, 2)
                return t.ite(has, t.widened(port.value, RESULT_BITS), NONE)
            case "tcpflags":
                flags = t.widened(self._extended(13, 1).value, RESULT_BITS)
                return t.ite(self.is_extended_segment, flags, NONE)
        raise TypeError(f"not behind extension headers: {name}")

    @cached_property
    def is_told(self) -> Term:
        """Whether what is behind IP's headers is known: in a packet that is no IP to the program, of IPv4, and of IPv6
        without an extension header, with only a fragment header, or with one that is cut."""
        second = t.any_of((self._wire.later6, t.negated(one_of(self._inner, WALKED)), t.negated(self._has(56))))
        straight = t.all_of((self._wire.has_fragment_header, self._has(48), second))
        walks = one_of(self._next, WALKED)
        return t.any_of((t.negated(self._is_ip6), t.negated(walks), self._is_cut, straight))

    @cached_property
    def has_one_extension(self) -> Term:
        """IPv6 with an extension header of 8 bytes that is no fragment header, and none behind it."""
        short = t.equal(self._wire.behind_ethernet(41, 1).value, t.const(0, 8))
        walks = one_of(self._next, [each for each in WALKED if each != 44])
        last = t.any_of((t.negated(one_of(self._inner, WALKED)), t.negated(self._has(56))))
        return t.all_of((self._is_ip6, walks, self._has(48), short, last))

    @cached_property
    def is_segment(self) -> Term:
        """It has a whole TCP header, where `is_told`."""
        return t.all_of((self._has_transport(TCP), self._wire.behind_ip(19, 1).there))

    @cached_property
    def is_extended_segment(self) -> Term:
        """It has a whole TCP header, where `has_one_extension`."""
        return t.all_of((one_of(self._inner, (TCP,)), self._extended(19, 1).there))

    @property
    def flags(self) -> Term:
        return self._wire.behind_ip(13, 1).value

    @property
    def extended_flags(self) -> Term:
        return self._extended(13, 1).value

    @cached_property
    def _ethertype(self) -> Term:
        """That of the last tag that is whole, with what follows it."""
        whole = self._wire.ethertype
        cut = t.ite(there(18), self._wire.bytes_at(16, 2), self._wire.bytes_at(12, 2))
        return t.widened(t.ite(whole.there, whole.value, cut), RESULT_BITS)

    @cached_property
    def _is_ip4(self) -> Term:
        version, words = t.extract(self._ip(0), 7, 4), t.extract(self._ip(0), 3, 0)
        return t.all_of(
            (self._wire.is_ip4, self._has(20), t.equal(version, t.const(4, 4)), t.at_least(words, 5)),
        )

    @cached_property
    def _is_ip6(self) -> Term:
        version = t.extract(self._ip(0), 7, 4)
        return t.all_of((self._wire.is_ip6, self._has(40), t.equal(version, t.const(6, 4))))

    def _of_ip(self, four: Term, six: Term) -> Term:
        return t.ite(self._is_ip4, t.widened(four, RESULT_BITS), t.ite(self._is_ip6, t.widened(six, RESULT_BITS), NONE))

    def _ip(self, offset: int) -> Term:
        return self._wire.behind_ethernet(offset, 1).value

    def _has(self, size: int) -> Term:
        """So many bytes of IP."""
        return self._wire.behind_ethernet(size - 1, 1).there

    @property
    def _next(self) -> Term:
        return self._wire.next_header.value

    @property
    def _inner(self) -> Term:
        """Behind the first extension header."""
        return self._ip(40)

    @property
    def _protocol6(self) -> Term:
        return self._wire.protocol6.value

    @cached_property
    def _is_cut(self) -> Term:
        """IPv6 with an extension header that is not whole: the program sees nothing behind."""
        return t.all_of((self._is_ip6, one_of(self._next, WALKED), t.negated(self._has(48))))

    def _has_transport(self, *protocols: int) -> Term:
        protocol = t.ite(self._wire.is_ip4, self._wire.protocol4.value, self._protocol6)
        is_one = one_of(protocol, protocols)
        is_ip = t.any_of((self._is_ip4, self._is_ip6))
        return t.all_of((is_ip, t.negated(self._is_cut), is_one, t.negated(self._wire.is_later)))

    def _extended(self, offset: int, size: int) -> Field:
        return self._wire.behind_ethernet(48 + offset, size)
