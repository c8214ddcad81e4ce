/* SPDX-License-Identifier: GPL-2.0-only */
/* How programs at tc copy a frame of a layer 3 device. */
#include "l3.h"

/*
 * Copies the first `wanted` bytes, 1 to `longest`, of a header of `shown` bytes and the packet behind it. The header is zeros
 * instead of addresses, then the bytes of `types`, in their order.
 */
static __always_inline __s64 load_behind(struct __sk_buff *skb, __u8 *to, __u64 wanted, __u64 longest, __u64 shown, __u64 types)
{
	__u64 rest;

	FFPF_OPAQUE(types); /* read from the context here, not where the ways below meet */
	if (longest < shown || wanted < shown) {
#pragma clang loop unroll(full)
		for (__u64 at = 0; at < shown; at++) {
			if (at < longest && at < wanted)
				to[at] = at < FFPF_MACS_BYTES ? 0 : types >> 8 * (at - FFPF_MACS_BYTES);
		}
		return 0;
	}
#pragma clang loop unroll(full)
	for (__u64 at = 0; at < shown; at += 2)
		*(__u16 *)(to + at) = at < FFPF_MACS_BYTES ? 0 : types >> 8 * (at - FFPF_MACS_BYTES);
	rest = wanted - shown;
	if (!rest)
		return 0;
	FFPF_OPAQUE(rest);
	if (ffpf_is_none(rest) || rest > longest - shown)
		return -1;
	return bpf_skb_load_bytes(skb, ffpf_packet_start(skb), to + shown, rest);
}

FFPF_PRIMITIVE __s64 ffpf_load_frame(void *ctx, void *to, __u64 wanted, __u64 longest)
{
	struct __sk_buff *skb = ctx;
	__u64 type = (__u16)skb->protocol, tag;

	if (!skb->vlan_present)
		return load_behind(skb, to, wanted, longest, FFPF_ETHERNET_BYTES, type);
	tag = (__u16)skb->vlan_proto | (__u32)__builtin_bswap16(skb->vlan_tci) << 16;
	return load_behind(skb, to, wanted, longest, FFPF_ETHERNET_BYTES + FFPF_TAG_BYTES, tag | type << 32);
}
