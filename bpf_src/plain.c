/* SPDX-License-Identifier: GPL-2.0-only */
/* What most packets need of the dissector, and the hash of a flow: inlined or called, see dissect.h. */
#include "dissect.h"

/*
 * The headers of a plain packet: TCP or UDP straight behind IPv4 without options or IPv6 without extensions, neither tag
 * nor fragment, all headers there. 0 if it is another, which ffpf_dissect() knows: for plain ones it says the same.
 */
FFPF_PRIMITIVE int ffpf_dissect_plain(void *data, void *end, struct ffpf_headers *headers)
{
	const __u8 *frame = data;
	__u16 ethertype, l4, payload;
	__u64 length = end - data;
	__u8 version, protocol, traffic, ttl, flags = 0;

	if (frame + 54 > (const __u8 *)end)
		return 0;
	ethertype = *(const __u16 *)(frame + 12);
	if (ethertype == __builtin_bswap16(0x0800)) {
		if (frame[14] != 0x45 || *(const __u16 *)(frame + 20) & __builtin_bswap16(0x3fff))
			return 0;
		version = 4;
		traffic = frame[15];
		ttl = frame[22];
		protocol = frame[23];
		l4 = 34;
	} else if (ethertype == __builtin_bswap16(0x86dd)) {
		if (frame[14] >> 4 != 6 || frame + 74 > (const __u8 *)end)
			return 0;
		version = 6;
		traffic = frame[14] << 4 | frame[15] >> 4;
		protocol = frame[20];
		ttl = frame[21];
		l4 = 54;
		frame += 20; /* offsets below are IPv4's */
	} else {
		return 0;
	}
	if (protocol == FFPF_TCP) {
		flags = frame[47];
		payload = l4 + (frame[46] >> 4) * 4;
	} else if (protocol == FFPF_UDP) {
		payload = l4 + 8;
	} else {
		return 0;
	}
	*headers = (struct ffpf_headers){
		.known = 1,
		.ethertype = __builtin_bswap16(ethertype),
		.vlan = FFPF_NO_VLAN,
		.l3 = 14,
		.l4 = l4,
		.payload = payload < length ? payload : length,
		.sport = ffpf_be16(frame + 34),
		.dport = ffpf_be16(frame + 36),
		.version = version,
		.protocol = protocol,
		.ports = 1,
		.tcp_flags = flags,
		.traffic = traffic,
		.ttl = ttl,
		.tcp = protocol == FFPF_TCP,
	};
	return 1;
}

/* Spreads each bit over all (Stafford's variant 13 of the finaliser of MurmurHash3). */
static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	x ^= x >> 31;
	return x;
}

static __always_inline __u64 word(const void *at, int bytes)
{
	const __u16 *halves = at;

	if (bytes == 4)
		return *(const __u32 *)at;
	return halves[0] | (__u64)halves[1] << 16 | (__u64)halves[2] << 32;
}

/* The hash of a flow: words are taken as they lie in memory. */
FFPF_PRIMITIVE __u64 ffpf_hash_flow(void *data, void *end, const struct ffpf_headers *headers, __u64 seed)
{
	struct ffpf_packet packet = {.data = data, .end = end};
	__u64 source = seed, destination = seed, what = headers->ethertype, hash;
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
			source = mix(source ^ word(at + 12, 4));
			destination = mix(destination ^ word(at + 16, 4));
		}
	} else if (headers->version == 6) {
		at = ffpf_at(&packet, headers->l3, 40);
#pragma clang loop unroll(full)
		for (int number = 0; at && number < 4; number++) {
			source = mix(source ^ word(at + 8 + 4 * number, 4));
			destination = mix(destination ^ word(at + 24 + 4 * number, 4));
		}
	} else {
		at = ffpf_at(&packet, 0, 14);
		if (at) {
			destination = mix(destination ^ word(at, 6));
			source = mix(source ^ word(at + 6, 6));
		}
	}
	hash = mix(source + destination + what);
	return hash + !hash;
}
