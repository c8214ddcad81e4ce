/* SPDX-License-Identifier: GPL-2.0-only */
/* icmp */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);

	return (void *)(ip + 1) <= end && ethernet->h_proto == bpf_htons(ETH_P_IP) && ip->protocol == IPPROTO_ICMP;
}

PROGRAM(matches)
