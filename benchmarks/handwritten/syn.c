/* SPDX-License-Identifier: GPL-2.0-only */
/* tcp[13] & 2 != 0 */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	__u8 *flags;

	if ((void *)(ip + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_TCP ||
	    ip->frag_off & bpf_htons(0x1fff))
		return 0;
	flags = (__u8 *)ip + ip->ihl * 4 + 13;
	return (void *)(flags + 1) <= end && *flags & 2;
}

PROGRAM(matches)
