/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet's headers and the hash of its flow, worked out once for each packet of a chain and kept in the tap's scratch
 * memory. What is read from there is unknown to the verifier, so that the ways through the dissector end here: a graph
 * with many nodes that ask stays linear to verify.
 *
 * Understood: Ethernet, up to two VLAN tags (802.1Q, 802.1ad, 0x9100), IPv4 with options, IPv6 with up to 8 extension
 * headers, fragments, ports of TCP, UDP and SCTP. Everything else, tunnels included, is the payload of what carries it.
 */
#ifndef FFPF_DISSECT_H
#define FFPF_DISSECT_H

#include "ffpf.h"

#define FFPF_MOST_TAGS 2
#define FFPF_MOST_EXTENSIONS 8

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

static __always_inline void ffpf_dissect_ethernet(const struct ffpf_packet *packet, struct ffpf_headers *headers)
{
	__u64 offset = 12;
	__u16 vlan = FFPF_NO_VLAN, ethertype = 0;
	void *at = ffpf_at(packet, 12, 2);

	if (at)
		ethertype = ffpf_be16(at);
#pragma clang loop unroll(full)
	for (int tag = 0; tag < FFPF_MOST_TAGS; tag++) {
		if (ethertype != 0x8100 && ethertype != 0x88a8 && ethertype != 0x9100)
			break;
		at = ffpf_at(packet, offset + 2, 4);
		if (!at)
			break;
		if (tag == 0)
			vlan = ffpf_be16(at) & 0xfff;
		ethertype = ffpf_be16(at + 2);
		offset += 4;
	}
	headers->ethertype = ethertype;
	headers->vlan = vlan;
	headers->l3 = offset + 2;
	FFPF_BARRIER();
}

static __always_inline void ffpf_dissect_ip4(const struct ffpf_packet *packet, struct ffpf_headers *headers)
{
	__u64 l3 = *(volatile __u16 *)&headers->l3, header_bytes;
	const __u8 *ip = ffpf_at(packet, l3, 20);
	__u16 fragment;

	if (!ip || ip[0] >> 4 != 4 || (ip[0] & 0xf) < 5)
		return;
	header_bytes = (ip[0] & 0xf) * 4;
	fragment = ffpf_be16(ip + 6) & 0x3fff;
	headers->version = 4;
	headers->traffic = ip[1];
	headers->ttl = ip[8];
	headers->protocol = ip[9];
	headers->fragment = !fragment ? 0 : fragment & 0x1fff ? 2 : 1;
	headers->l4 = l3 + header_bytes;
}

static __always_inline void ffpf_dissect_ip6(const struct ffpf_packet *packet, struct ffpf_headers *headers)
{
	__u64 l3 = *(volatile __u16 *)&headers->l3, offset = l3 + 40, bytes;
	const __u8 *ip = ffpf_at(packet, l3, 40), *extension;
	__u8 protocol, fragment = 0;

	if (!ip || ip[0] >> 4 != 6)
		return;
	protocol = ip[6];
	headers->version = 6;
	headers->traffic = ip[0] << 4 | ip[1] >> 4;
	headers->ttl = ip[7];
#pragma clang loop unroll(disable)
	for (int number = 0; number < FFPF_MOST_EXTENSIONS; number++) {
		if (protocol != FFPF_HOP_BY_HOP && protocol != FFPF_ROUTING && protocol != FFPF_DESTINATION &&
		    protocol != FFPF_MOBILITY && protocol != FFPF_AH && protocol != FFPF_FRAGMENT)
			break;
		extension = ffpf_at(packet, offset, 8);
		if (!extension || fragment == 2)
			break;
		bytes = (extension[1] + 1) * 8;
		if (protocol == FFPF_AH)
			bytes = (extension[1] + 2) * 4;
		if (protocol == FFPF_FRAGMENT) {
			bytes = 8;
			fragment = ffpf_be16(extension + 2) & 0xfff8 ? 2 : extension[3] & 1 ? 1 : 0;
		}
		protocol = extension[0];
		offset += bytes;
	}
	headers->protocol = protocol;
	headers->fragment = fragment;
	headers->l4 = offset;
}

static __always_inline void ffpf_dissect_transport(const struct ffpf_packet *packet, struct ffpf_headers *headers)
{
	__u64 l4 = *(volatile __u16 *)&headers->l4, payload = l4, end = packet->end - packet->data;
	__u8 protocol = *(volatile __u8 *)&headers->protocol;
	const __u8 *at = ffpf_at(packet, l4, 4);

	if (*(volatile __u8 *)&headers->version && *(volatile __u8 *)&headers->fragment != 2) {
		if (at && (protocol == FFPF_TCP || protocol == FFPF_UDP || protocol == FFPF_SCTP)) {
			headers->sport = ffpf_be16(at);
			headers->dport = ffpf_be16(at + 2);
			headers->ports = 1;
		}
		if (protocol == FFPF_TCP) {
			at = ffpf_at(packet, l4, 20);
			payload = end;
			if (at) {
				headers->tcp_flags = at[13];
				payload = l4 + (at[12] >> 4) * 4;
			}
		} else if (protocol == FFPF_UDP || protocol == FFPF_ICMP || protocol == FFPF_ICMP6) {
			payload = l4 + 8;
		} else if (protocol == FFPF_SCTP) {
			payload = l4 + 12;
		}
	}
	headers->payload = payload < end ? payload : end;
}

/* The packet's headers. */
static __always_inline const struct ffpf_headers *ffpf_headers(const struct ffpf_packet *packet)
{
	struct ffpf_headers *headers = &packet->scratch->headers;

	if (!*(volatile __u32 *)&headers->known) {
		__builtin_memset(headers, 0, sizeof(*headers));
		headers->known = 1;
		ffpf_dissect_ethernet(packet, headers);
		headers->l4 = headers->l3;
		if (headers->ethertype == 0x0800)
			ffpf_dissect_ip4(packet, headers);
		else if (headers->ethertype == 0x86dd)
			ffpf_dissect_ip6(packet, headers);
		FFPF_BARRIER();
		ffpf_dissect_transport(packet, headers);
		FFPF_BARRIER();
	}
	return headers;
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

static __always_inline __u64 ffpf_word(const void *at, int bytes)
{
	const __u16 *halves = at;

	if (bytes == 4)
		return *(const __u32 *)at;
	return halves[0] | (__u64)halves[1] << 16 | (__u64)halves[2] << 32;
}

/*
 * A hash of the packet's flow, the same in both directions, never 0: addresses, ports and protocol. Fragments of a
 * datagram count as without ports, so that they stay together; what is not IP has its MAC addresses and its ethertype
 * instead. Keyed by the tap's seed. Words are taken as they lie in memory.
 */
static __always_inline __u64 ffpf_flow_hash(const struct ffpf_packet *packet)
{
	const struct ffpf_headers *headers;
	__u64 source, destination, what, seed, hash = *(volatile __u64 *)&packet->scratch->flow_hash;
	const void *at;

	if (hash)
		return hash;
	headers = ffpf_headers(packet);
	seed = packet->tap->seed;
	source = destination = seed;
	what = headers->ethertype;
	if (headers->version) {
		what = (__u64)headers->version << 32 | headers->protocol;
		if (!headers->fragment) {
			source ^= (__u64)headers->sport << 32;
			destination ^= (__u64)headers->dport << 32;
		}
	}
	if (headers->version == 4) {
		at = ffpf_at(packet, headers->l3, 20);
		if (at) {
			source = ffpf_mix(source ^ ffpf_word(at + 12, 4));
			destination = ffpf_mix(destination ^ ffpf_word(at + 16, 4));
		}
	} else if (headers->version == 6) {
		at = ffpf_at(packet, headers->l3, 40);
#pragma clang loop unroll(full)
		for (int word = 0; at && word < 4; word++) {
			source = ffpf_mix(source ^ ffpf_word(at + 8 + 4 * word, 4));
			destination = ffpf_mix(destination ^ ffpf_word(at + 24 + 4 * word, 4));
		}
	} else {
		at = ffpf_at(packet, 0, 14);
		if (at) {
			destination = ffpf_mix(destination ^ ffpf_word(at, 6));
			source = ffpf_mix(source ^ ffpf_word(at + 6, 6));
		}
	}
	hash = ffpf_mix(source + destination + what);
	hash += !hash;
	packet->scratch->flow_hash = hash;
	FFPF_BARRIER();
	return *(volatile __u64 *)&packet->scratch->flow_hash;
}

#endif
