/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet's headers and the hash of its flow, worked out once for each packet of a chain, when the first node asks, and
 * kept in the tap's scratch memory. What is read from there is unknown to the verifier, so that the ways through the
 * dissector end there. dissect.c has the dissector, which is called; plain.c what most packets need, which is inlined in
 * segments where few nodes ask (a call takes 8 ns); where many do, called.c leaves all to the dissector, and the hash is
 * called as well, so that these stay small.
 *
 * Understood: Ethernet, up to two VLAN tags (802.1Q, 802.1ad, 0x9100), IPv4 with options, IPv6 with up to 8 extension
 * headers, fragments, ports of TCP, UDP and SCTP. Everything else, tunnels included, is the payload of what carries it.
 */
#ifndef FFPF_DISSECT_H
#define FFPF_DISSECT_H

#include "ffpf.h"

enum ffpf_protocol {
	FFPF_HOP_BY_HOP = 0,
	FFPF_ICMP = 1,
	FFPF_TCP = 6,
	FFPF_UDP = 17,
	FFPF_ROUTING = 43,
	FFPF_FRAGMENT = 44,
	FFPF_AH = 51,
	FFPF_ICMP6 = 58,
	FFPF_DESTINATION = 60,
	FFPF_SCTP = 132,
	FFPF_MOBILITY = 135,
};

extern int ffpf_dissect(void *data, void *end, struct ffpf_headers *headers);
extern int ffpf_dissect_plain(void *data, void *end, struct ffpf_headers *headers);
extern __u64 ffpf_hash_flow(void *data, void *end, const struct ffpf_headers *headers, __u64 seed);

/* The packet's headers. */
static __always_inline const struct ffpf_headers *ffpf_headers(const struct ffpf_packet *packet)
{
	struct ffpf_headers *headers = &packet->scratch->headers;

	if (!*(volatile __u32 *)&headers->known && !ffpf_dissect_plain(packet->data, packet->end, headers))
		ffpf_dissect(packet->data, packet->end, headers);
	FFPF_BARRIER();
	return headers;
}

/*
 * A hash of the packet's flow, the same in both directions, never 0: addresses, ports and protocol. Fragments of a
 * datagram count as without ports, those of IPv6 as without protocol, so that they stay together; what is not IP has its
 * MAC addresses and its ethertype instead. Keyed by the tap's seed.
 */
static __always_inline __u64 ffpf_flow_hash(const struct ffpf_packet *packet)
{
	volatile __u64 *known = &packet->scratch->flow_hash;

	if (!*known)
		*known = ffpf_hash_flow(packet->data, packet->end, ffpf_headers(packet), packet->tap->seed);
	return *known;
}

#endif
