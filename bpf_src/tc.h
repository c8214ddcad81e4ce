/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The frame as it is on the wire, at tc: there the outer VLAN tag may be beside the bytes (skb->vlan_tci), and bytes may be
 * in several pieces, which bpf_skb_load_bytes() reads and the packet's pointers do not reach.
 */
#ifndef FFPF_TC_H
#define FFPF_TC_H

#include "ffpf.h"

#define FFPF_MACS_BYTES 12
#define FFPF_TAG_BYTES 4

/* One byte of the tag: its type, then the rest, in network byte order. */
static __always_inline __u8 ffpf_tag_byte(const struct __sk_buff *skb, int number)
{
	__u16 type = __builtin_bswap16(skb->vlan_proto), rest = skb->vlan_tci;
	__u16 half = number < 2 ? type : rest;

	return number & 1 ? half : half >> 8;
}

/* Copies the first `wanted` bytes of a frame whose tag is beside it, 1 to `longest`, with the tag in its place. */
static __always_inline __s64 ffpf_load_tagged(struct __sk_buff *skb, __u8 *to, __u64 wanted, __u64 longest)
{
	__u64 macs = wanted, rest;

	FFPF_OPAQUE(macs);
	if (macs > FFPF_MACS_BYTES)
		macs = FFPF_MACS_BYTES;
	FFPF_OPAQUE(macs);
	if (ffpf_is_none(macs) || macs > longest || bpf_skb_load_bytes(skb, 0, to, macs))
		return -1;
#pragma clang loop unroll(full)
	for (__u64 number = 0; number < FFPF_TAG_BYTES; number++) {
		if (FFPF_MACS_BYTES + number < longest && FFPF_MACS_BYTES + number < wanted)
			to[FFPF_MACS_BYTES + number] = ffpf_tag_byte(skb, number);
	}
	if (longest <= FFPF_MACS_BYTES + FFPF_TAG_BYTES || wanted <= FFPF_MACS_BYTES + FFPF_TAG_BYTES)
		return 0;
	rest = wanted - FFPF_MACS_BYTES - FFPF_TAG_BYTES;
	FFPF_OPAQUE(rest);
	if (ffpf_is_none(rest) || rest > longest - FFPF_MACS_BYTES - FFPF_TAG_BYTES)
		return -1;
	return bpf_skb_load_bytes(skb, FFPF_MACS_BYTES, to + FFPF_MACS_BYTES + FFPF_TAG_BYTES, rest);
}

#endif
