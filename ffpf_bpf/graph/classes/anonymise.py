"""`anonymise`: of grabbed packets, headers whose addresses are pseudonyms, and no payload."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Depth, Table, Transform
from ffpf_bpf.graph.expression import Node, Role
from ffpf_bpf.graph.parameters import words

KEY_BYTES = 16
COPY_BYTES = 256  # COPY_BYTES of bpf_src/anonymise.c
KNOWN_BYTES = 80  # Ethernet, IPv6 and TCP headers, in words
FIXED_BYTES = 16 + COPY_BYTES + 16  # struct memory there
ENTRY_BYTES = 16 + 32  # struct value_entry and struct address_entry
DEFAULT_ENTRIES = 1_024
HELP = "`(anonymise)`, `(anonymise,ports)`, or with a key of 32 hex digits `(anonymise,key=...)`"


@dataclass(frozen=True, slots=True)
class Anonymise(Node):
    """Shows of each packet its headers, with pseudonyms for addresses; the packet itself is not touched.

    Text `(anonymise)`, `(anonymise,ports)`, `(anonymise,"ports key=00112233445566778899aabbccddeeff")`, Python
    `anonymise()`, `anonymise(ports=True, key=bytes(16))`. Without a `key`, of 16 bytes, each flow draws its own when it
    is instantiated, and nobody learns it; flows that share the node share it. A given key makes the same pseudonyms
    everywhere, and whoever has it can undo them: it is shown as `key=hidden`.

    What is shown, and nothing else:

    - Ethernet: both addresses replaced by 46 random bits, marked as locally administered, a group's as a group's,
      broadcast as it is; up to two VLAN tags and the ethertype. Of what is not IP (ARP, say), or not understood, this
      alone is shown: an IP header or extension header that is cut, or longer than its packet says, over 236 bytes of
      headers, over 8 extension headers.
    - IPv4: the header, both addresses replaced, options made NOPs, the checksum worked out anew.
    - IPv6: the header, both addresses replaced; of extension headers what follows and the length, zeros in between; a
      fragment header whole.
    - The transport header, unless the packet is a later fragment or the header is cut: of TCP the first 20 bytes, of
      UDP 8, of SCTP 12, with ports replaced one to one if `ports` are asked for; of ICMP type, code and zeros up to 8
      bytes. Checksums are zero. Other protocols are cut behind the IP header.

    So these stay as they were: lengths, the packet's included, and its time and tap; VLAN tags; TOS, flow label, TTL,
    protocol, the ids, flags and offsets of fragments; TCP's sequence numbers, flags, window and urgent pointer, SCTP's
    tag, and ports unless asked for. Filters and functions see the real packet wherever they stand, and what they pass
    and count tells of it; a node's result is left out of records.

    Addresses are replaced as by Crypto-PAn (Xu, Fan, Ammar, Moon, ICNP 2002): two that have n first bits in common have
    as many in common afterwards. The pseudorandom function is SipHash-2-4 (Aumasson, Bernstein, 2012), six bits at a
    time. The limits of such pseudonyms: they are the same for as long as the key is, so what somebody does can be
    followed; the structure of networks shows; and who sends packets of his own through the tap, or knows what a host
    does, finds its pseudonym, and a part of those of its neighbours (Brekne, Årnes, Øslebø, PET 2005; Burkhart et al.,
    "The role of network trace anonymization under attack", 2008). It is no protection from somebody who may do that.

    `mbuf_bytes` is private memory of each CPU: 288 bytes, and 48 for each of a power of two of pseudonyms that it
    remembers, by default 1,024. In front of a `grab` a snaplen of 256 is enough.

    Raises ExpressionError for other words, and for a key that is not 16 bytes.
    """

    class_name: ClassVar[str] = "anonymise"
    role: ClassVar[Role] = Role.TRANSFORMS
    least_mbuf_bytes: ClassVar[int] = FIXED_BYTES + ENTRY_BYTES
    private: ClassVar[bool] = True
    example: ClassVar[str] = "(device,eth0) -> (bpf,tcp) -> (anonymise,ports) -> (grab,snaplen=256)"

    ports: bool = False
    key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        if not isinstance(self.ports, bool):
            raise ExpressionError(
                f"`ports` is {self.ports!r}, neither True nor False", where=self.where, help="write `ports=True`"
            )
        if not isinstance(self.key, bytes) or len(self.key) not in (0, KEY_BYTES):
            raise ExpressionError(
                f"the key is not {KEY_BYTES} bytes",
                where=self.where,
                help=f"leave it out for a random one; {2 * KEY_BYTES} hex digits are `key=bytes.fromhex(...)`",
            )

    @property
    def default_mbuf_bytes(self) -> int:
        return FIXED_BYTES + DEFAULT_ENTRIES * ENTRY_BYTES

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        where = f"({cls.class_name})"
        bare, named = words(expression, frozenset({"key"}), where=where, help=HELP)
        for number, word in enumerate(bare):
            if word != "ports" or number:
                what = "stands twice" if word == "ports" else "is no option"
                raise ExpressionError(f"`{word}` {what}", where=where, help=HELP)
        key = named.get("key")
        if key is not None and not re.fullmatch(r"[0-9A-Fa-f]{32}", key):
            what = "is hidden here" if key == "hidden" else f"is not {2 * KEY_BYTES} hex digits"
            raise ExpressionError(f"the key {what}", where=where, help="leave `key=` out for a random one")
        return cls(bool(bare), bytes.fromhex(key or ""), name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return self._options(self.key.hex())

    @property
    def serves_policy(self) -> bool:
        # Whoever states the key can undo what it hides.
        return not self.key

    @property
    def shown_expression(self) -> str:
        return self._options("hidden")

    def _options(self, key: str) -> str:
        return " ".join((["ports"] if self.ports else []) + ([f"key={key}"] if self.key else []))

    @property
    def arguments(self) -> tuple[str, ...]:
        ports = ("ports=True",) if self.ports else ()
        return (*ports, f"key=bytes.fromhex({self.key.hex()!r})") if self.key else ports

    @property
    def effect(self) -> Transform:
        entries = 1 << (((self.mbuf_bytes - FIXED_BYTES) // ENTRY_BYTES).bit_length() - 1)
        return Transform(
            "anonymise",
            keep="ffpf_anonymise_keep",
            rewrite="ffpf_anonymise_rewrite",
            arguments=(entries, int(self.ports)),
            table=Table(KEY_BYTES, self.key, random_bytes=0 if self.key else KEY_BYTES),
            copy_bytes=COPY_BYTES,
            known="ffpf_anonymise_known",
            known_bytes=KNOWN_BYTES,
            # Whoever gives the key can undo it.
            leaves=Depth.HEADERS if self.key else Depth.ANONYMISED,
        )
