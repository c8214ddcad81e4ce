/* SPDX-License-Identifier: GPL-2.0-only */
/* What most packets need of the dissector: inlined, unless called.c takes its place; see dissect.h. */
#include "dissect.h"

/*
 * A plain packet: TCP or UDP straight behind IPv4 without options or IPv6 without extensions, neither tag nor fragment,
 * all headers there.
 */
struct plain {
	__u8 version, protocol;
	const __u8 *transport;
};

/* Whether the packet is plain. */
static __always_inline int find_plain(const __u8 *frame, const void *end, struct plain *plain)
{
	__u16 ethertype;

	if ((const void *)frame + 54 > end)
		return 0;
	ethertype = *(const __u16 *)(frame + 12);
	if (ethertype == __builtin_bswap16(0x0800)) {
		if (frame[14] != 0x45 || *(const __u16 *)(frame + 20) & __builtin_bswap16(0x3fff))
			return 0;
		*plain = (struct plain){4, frame[23], frame + 34};
	} else if (ethertype == __builtin_bswap16(0x86dd)) {
		if (frame[14] >> 4 != 6 || (const void *)frame + 74 > end)
			return 0;
		*plain = (struct plain){6, frame[20], frame + 54};
	} else {
		return 0;
	}
	return plain->protocol == FFPF_TCP || plain->protocol == FFPF_UDP;
}

/* The headers of a plain packet, as ffpf_dissect() would say; 0 if it is another. */
FFPF_PRIMITIVE int ffpf_dissect_plain(void *data, void *end, __u64 length, struct ffpf_headers *headers)
{
	const __u8 *frame = data;
	__u16 l4, payload;
	struct plain plain;

	if (!find_plain(frame, end, &plain))
		return 0;
	l4 = plain.version == 4 ? 34 : 54;
	payload = l4 + (plain.protocol == FFPF_TCP ? (plain.transport[12] >> 4) * 4 : 8);
	*headers = (struct ffpf_headers){
		.known = 1,
		.ethertype = plain.version == 4 ? 0x0800 : 0x86dd,
		.vlan = FFPF_NO_VLAN,
		.l3 = 14,
		.l4 = l4,
		.payload = payload < length ? payload : length,
		.sport = ffpf_be16(plain.transport),
		.dport = ffpf_be16(plain.transport + 2),
		.version = plain.version,
		.protocol = plain.protocol,
		.ports = 1,
		.tcp_flags = plain.protocol == FFPF_TCP ? plain.transport[13] : 0,
		.traffic = plain.version == 4 ? frame[15] : frame[14] << 4 | frame[15] >> 4,
		.ttl = plain.version == 4 ? frame[22] : frame[21],
		.tcp = plain.protocol == FFPF_TCP,
	};
	return 1;
}

/* The hash of a plain packet's flow, as ffpf_hash_flow() would say; 0 if it is another. */
FFPF_PRIMITIVE __u64 ffpf_hash_plain(void *data, void *end, __u64 seed)
{
	const __u8 *frame = data;
	__u64 source = seed, destination = seed;
	struct plain plain;

	if (!find_plain(frame, end, &plain))
		return 0;
	source ^= (__u64)ffpf_be16(plain.transport) << 32;
	destination ^= (__u64)ffpf_be16(plain.transport + 2) << 32;
	if (plain.version == 4) {
		source = ffpf_mix(source ^ *(const __u32 *)(frame + 26));
		destination = ffpf_mix(destination ^ *(const __u32 *)(frame + 30));
	} else {
#pragma clang loop unroll(full)
		for (int at = 0; at < 16; at += 4) {
			source = ffpf_mix(source ^ *(const __u32 *)(frame + 22 + at));
			destination = ffpf_mix(destination ^ *(const __u32 *)(frame + 38 + at));
		}
	}
	return ffpf_joined(source, destination, (__u64)plain.version << 32 | plain.protocol);
}
