/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hash of a packet's flow, the same in both directions and never 0: addresses, protocol, and the ports of what is
 * no fragment, of fragments over IPv6 not even the protocol; of what is not IP, MAC addresses and ethertype. The same
 * function as the node classes', so that the same flows are chosen.
 */
#ifndef FLOWHASH_H
#define FLOWHASH_H

#include "headers.h"

INLINE __u64 mixed(__u64 x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

INLINE __u64 mac_word(const __u8 *address)
{
	return *(const __u32 *)address | (__u64) * (const __u16 *)(address + 4) << 32;
}

INLINE __u64 flow_hash(void *data, void *end, __u64 seed)
{
	struct headers headers = parse(data, end);
	__u64 source = seed, destination = seed, what = bpf_ntohs(headers.ethertype), hash;
	struct ports *ports = ports_in(&headers, end);

	if (headers.version)
		what = (__u64)headers.version << 32 |
		       (headers.version == 6 && headers.fragment ? IPPROTO_FRAGMENT : headers.protocol);
	if (ports && !headers.fragment) {
		source ^= (__u64)bpf_ntohs(ports->source) << 32;
		destination ^= (__u64)bpf_ntohs(ports->dest) << 32;
	}
	if (headers.version == 4) {
		struct iphdr *ip = headers.network;

		source = mixed(source ^ ip->saddr);
		destination = mixed(destination ^ ip->daddr);
	} else if (headers.version == 6) {
		struct ipv6hdr *ip = headers.network;

#pragma unroll
		for (int word = 0; word < 4; word++) {
			source = mixed(source ^ ip->saddr.s6_addr32[word]);
			destination = mixed(destination ^ ip->daddr.s6_addr32[word]);
		}
	} else if (data + sizeof(struct ethhdr) <= end) {
		struct ethhdr *ethernet = data;

		destination = mixed(destination ^ mac_word(ethernet->h_dest));
		source = mixed(source ^ mac_word(ethernet->h_source));
	}
	hash = mixed(source + destination + what);
	return hash + !hash;
}

#endif
