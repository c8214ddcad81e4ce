"""Names of protocols in policies: of those that Ethernet carries, and of those that IP carries."""

from __future__ import annotations

IPV4, IPV6, ARP, RARP = 0x0800, 0x86DD, 0x0806, 0x8035
TCP, UDP, SCTP = 6, 17, 132

# https://www.iana.org/assignments/ieee-802-numbers
ETHERTYPES = {
    "ip": IPV4, "ip6": IPV6, "arp": ARP, "rarp": RARP, "wol": 0x0842, "lacp": 0x8809, "pppoed": 0x8863,
    "pppoes": 0x8864, "eapol": 0x888E, "lldp": 0x88CC, "ptp": 0x88F7,
}  # fmt: skip
# https://www.iana.org/assignments/protocol-numbers
PROTOCOLS = {
    "icmp": 1, "igmp": 2, "ipip": 4, "tcp": TCP, "udp": UDP, "dccp": 33, "6in4": 41, "rsvp": 46, "gre": 47, "esp": 50,
    "ah": 51, "icmp6": 58, "eigrp": 88, "ospf": 89, "etherip": 97, "pim": 103, "ipcomp": 108, "vrrp": 112, "l2tp": 115,
    "sctp": SCTP, "udplite": 136,
}  # fmt: skip

WORDS = {
    "ip": "IPv4", "ip6": "IPv6", "wol": "Wake-on-LAN", "icmp6": "ICMPv6", "etherip": "EtherIP", "ipcomp": "IPComp",
    "udplite": "UDP-Lite", "pppoed": "PPPoE discovery", "pppoes": "PPPoE", "6in4": "6in4", "ipip": "IP in IP",
}  # fmt: skip


def ethertype_name(number: int) -> str:
    """As it stands in a policy: `arp`."""
    return _name(ETHERTYPES, number) or f"0x{number:04x}"


def protocol_name(number: int) -> str:
    """As it stands in a policy: `tcp`, or `99`."""
    return _name(PROTOCOLS, number) or str(number)


def ethertype_word(number: int) -> str:
    """As it stands in a sentence: `ARP`, or `ethertype 0x1234`."""
    name = _name(ETHERTYPES, number)
    return WORDS.get(name, name.upper()) if name else f"ethertype 0x{number:04x}"


def protocol_word(number: int) -> str:
    """As it stands in a sentence: `TCP`, or `protocol 99`."""
    name = _name(PROTOCOLS, number)
    return WORDS.get(name, name.upper()) if name else f"protocol {number}"


def _name(names: dict[str, int], number: int) -> str:
    return next((name for name, value in names.items() if value == number), "")
