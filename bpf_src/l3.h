/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The frame as it is shown, at tc of a layer 3 device: its packets have no link-layer header, so they get the one that
 * loopback's frames have, without addresses, and with the type that the kernel has for the packet (skb->protocol).
 */
#ifndef FFPF_L3_H
#define FFPF_L3_H

#include "tc.h"

#define FFPF_ETHERNET_BYTES 14

static __always_inline __u64 ffpf_shown_bytes(const struct __sk_buff *skb)
{
	return skb->vlan_present ? FFPF_ETHERNET_BYTES + FFPF_TAG_BYTES : FFPF_ETHERNET_BYTES;
}

/*
 * Where the packet begins. Some devices leave what a packet came in in front of what arrives (tunnels before 5.14): then
 * tc's bytes begin there, while skb->wire_len is what it was without (net/core/dev.c, sch_handle_ingress).
 */
static __always_inline __u32 ffpf_packet_start(const struct __sk_buff *skb)
{
	__u32 all = skb->len, packet = skb->wire_len;

	return packet < all ? all - packet : 0;
}

#endif
