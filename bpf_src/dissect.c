/* SPDX-License-Identifier: GPL-2.0-only */
/* The functions that programs call for packets that are not plain: compiled once, appended to programs that need them. */
#include "dissect.h"

#define MOST_TAGS 2
#define MOST_EXTENSIONS 8

/* What is known so far goes through memory, so that the verifier goes on with one state, not one for each way here. */
#define STORED(member) (*(volatile typeof(headers->member) *)&headers->member)

static __always_inline void dissect_ethernet(const struct ffpf_packet *packet, struct ffpf_headers *headers)
{
	__u64 offset = 12;
	__u16 vlan = FFPF_NO_VLAN, ethertype = 0;
	void *at = ffpf_at(packet, 12, 2);

	if (at)
		ethertype = ffpf_be16(at);
#pragma clang loop unroll(full)
	for (int tag = 0; tag < MOST_TAGS; tag++) {
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

static __always_inline void dissect_ip4(const struct ffpf_packet *packet, struct ffpf_headers *headers)
{
	__u64 l3 = STORED(l3), header_bytes;
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

static __always_inline void dissect_ip6(const struct ffpf_packet *packet, struct ffpf_headers *headers)
{
	__u64 l3 = STORED(l3), offset, bytes;
	const __u8 *ip = ffpf_at(packet, l3, 40), *extension;
	__u8 protocol;

	if (!ip || ip[0] >> 4 != 6)
		return;
	STORED(l4) = l3 + 40;
	STORED(protocol) = ip[6];
	headers->version = 6;
	headers->traffic = ip[0] << 4 | ip[1] >> 4;
	headers->ttl = ip[7];
#pragma clang loop unroll(disable)
	for (int number = 0; number < MOST_EXTENSIONS; number++) {
		protocol = STORED(protocol);
		offset = STORED(l4);
		if (protocol != FFPF_HOP_BY_HOP && protocol != FFPF_ROUTING && protocol != FFPF_DESTINATION &&
		    protocol != FFPF_MOBILITY && protocol != FFPF_AH && protocol != FFPF_FRAGMENT)
			break;
		extension = ffpf_at(packet, offset, 8);
		if (!extension || STORED(fragment) == 2)
			break;
		bytes = (extension[1] + 1) * 8;
		if (protocol == FFPF_AH)
			bytes = (extension[1] + 2) * 4;
		if (protocol == FFPF_FRAGMENT) {
			bytes = 8;
			STORED(fragment) = ffpf_be16(extension + 2) & 0xfff8 ? 2 : STORED(fragment) | (extension[3] & 1);
		}
		STORED(protocol) = extension[0];
		STORED(l4) = offset + bytes;
	}
}

static __always_inline void dissect_transport(const struct ffpf_packet *packet, struct ffpf_headers *headers)
{
	__u64 l4 = STORED(l4), payload = l4, end = packet->length;
	__u8 protocol = STORED(protocol);
	const __u8 *at = ffpf_at(packet, l4, 4);

	if (STORED(version) && STORED(fragment) != 2) {
		if (at && (protocol == FFPF_TCP || protocol == FFPF_UDP || protocol == FFPF_SCTP)) {
			headers->sport = ffpf_be16(at);
			headers->dport = ffpf_be16(at + 2);
			headers->ports = 1;
		}
		if (protocol == FFPF_TCP) {
			at = ffpf_at(packet, l4, 20);
			payload = end;
			if (at) {
				headers->tcp = 1;
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

/* Fills in `headers`. */
int ffpf_dissect(void *data, void *end, __u64 length, struct ffpf_headers *headers)
{
	struct ffpf_packet packet = {.data = data, .end = end, .length = length};

	__builtin_memset(headers, 0, sizeof(*headers));
	headers->known = 1;
	/*
	 * By 0, which the verifier takes for 0 or 1: what it learns about the packet's end it then knows of this address
	 * only. Known of the caller's as well, it would walk what follows the call once for each length found out here.
	 */
	packet.data += STORED(version) & 1;
	dissect_ethernet(&packet, headers);
	STORED(l4) = STORED(l3);
	if (STORED(ethertype) == 0x0800)
		dissect_ip4(&packet, headers);
	else if (STORED(ethertype) == 0x86dd)
		dissect_ip6(&packet, headers);
	FFPF_BARRIER();
	dissect_transport(&packet, headers);
	FFPF_BARRIER();
	return 0;
}

static __always_inline __u64 word(const void *at, int bytes)
{
	const __u16 *halves = at;

	if (bytes == 4)
		return *(const __u32 *)at;
	return halves[0] | (__u64)halves[1] << 16 | (__u64)halves[2] << 32;
}

/* The hash of a flow: words are taken as they lie in memory. */
__u64 ffpf_hash_flow(void *data, void *end, const struct ffpf_headers *headers, __u64 seed)
{
	struct ffpf_packet packet = {.data = data, .end = end};
	__u64 source = seed, destination = seed, what = headers->ethertype;
	const void *at;

	if (headers->version) {
		what = (__u64)headers->version << 32 | headers->protocol;
		if (!headers->fragment) {
			source ^= (__u64)headers->sport << 32;
			destination ^= (__u64)headers->dport << 32;
		} else if (headers->version == 6) {
			/* Of the fragments of a datagram only the first knows the protocol, behind more extensions. */
			what = (__u64)headers->version << 32 | FFPF_FRAGMENT;
		}
	}
	if (headers->version == 4) {
		at = ffpf_at(&packet, headers->l3, 20);
		if (at) {
			source = ffpf_mix(source ^ word(at + 12, 4));
			destination = ffpf_mix(destination ^ word(at + 16, 4));
		}
	} else if (headers->version == 6) {
		at = ffpf_at(&packet, headers->l3, 40);
#pragma clang loop unroll(full)
		for (int number = 0; at && number < 4; number++) {
			source = ffpf_mix(source ^ word(at + 8 + 4 * number, 4));
			destination = ffpf_mix(destination ^ word(at + 24 + 4 * number, 4));
		}
	} else {
		at = ffpf_at(&packet, 0, 14);
		if (at) {
			destination = ffpf_mix(destination ^ word(at, 6));
			source = ffpf_mix(source ^ word(at + 6, 6));
		}
	}
	return ffpf_joined(source, destination, what);
}
