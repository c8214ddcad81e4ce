/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet's headers and the hash of its flow. dissect.c has the dissector and the hash of any packet, which are called (8
 * ns a call) and say what they found in the tap's scratch memory, once for each packet of a chain: what is read from there
 * is unknown to the verifier, so that the ways through the dissector end there. plain.c has what most packets need: in
 * segments where few nodes ask it is inlined, and leaves what a node asks for in registers. Where many do, called.c takes
 * its place, so that these stay small.
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

extern int ffpf_dissect(void *data, void *end, __u64 length, struct ffpf_headers *headers);
extern int ffpf_dissect_plain(void *data, void *end, __u64 length, struct ffpf_headers *headers);
extern __u64 ffpf_hash_flow(void *data, void *end, const struct ffpf_headers *headers, __u64 seed);
extern __u64 ffpf_hash_plain(void *data, void *end, __u64 seed);

/* The packet's headers. */
static __always_inline struct ffpf_headers ffpf_headers(const struct ffpf_packet *packet)
{
	struct ffpf_headers *kept = &packet->scratch->headers, found;

	if (ffpf_dissect_plain(packet->data, packet->end, ffpf_length(packet), &found))
		return found;
	if (!*(volatile __u32 *)&kept->known)
		ffpf_dissect(packet->data, packet->end, ffpf_length(packet), kept);
	FFPF_BARRIER();
	return *kept;
}

/* The same, where it lies in memory: for what is large, so that the verifier does not tell packets apart in it. */
static __always_inline const struct ffpf_headers *ffpf_kept_headers(const struct ffpf_packet *packet)
{
	struct ffpf_headers *kept = &packet->scratch->headers;

	if (!*(volatile __u32 *)&kept->known &&
	    !ffpf_dissect_plain(packet->data, packet->end, ffpf_length(packet), kept))
		ffpf_dissect(packet->data, packet->end, ffpf_length(packet), kept);
	FFPF_BARRIER();
	return kept;
}

/* Spreads each bit over all (Stafford's variant 13 of the finaliser of MurmurHash3). */
static __always_inline __u64 ffpf_mix(__u64 x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	x ^= x >> 31;
	return x;
}

/* The hash of a flow, from those of both of its ends. */
static __always_inline __u64 ffpf_joined(__u64 source, __u64 destination, __u64 what)
{
	__u64 hash = ffpf_mix(source + destination + what);

	return hash + !hash;
}

/*
 * A hash of the packet's flow, the same in both directions, never 0: addresses, ports and protocol. Fragments of a
 * datagram count as without ports, those of IPv6 as without protocol, so that they stay together; what is not IP has its
 * MAC addresses and its ethertype instead. Keyed by the tap's seed, and worked out once for a packet.
 */
static __always_inline __u64 ffpf_flow_hash(const struct ffpf_packet *packet)
{
	volatile __u64 *known = &packet->scratch->flow_hash;
	__u64 hash = *known;

	if (!hash) {
		hash = ffpf_hash_plain(packet->data, packet->end, packet->tap->seed);
		if (!hash)
			hash = ffpf_hash_flow(packet->data, packet->end, ffpf_kept_headers(packet), packet->tap->seed);
		*known = hash;
	}
	return hash;
}

#endif
