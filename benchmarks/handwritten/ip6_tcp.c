/* SPDX-License-Identifier: GPL-2.0-only */
/* ip6 and tcp */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	struct ethhdr *ethernet = data;
	struct ipv6hdr *ip = (void *)(ethernet + 1);
	__u8 *following = (void *)(ip + 1);

	if ((void *)(ip + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IPV6))
		return 0;
	if (ip->nexthdr == IPPROTO_TCP)
		return 1;
	return ip->nexthdr == IPPROTO_FRAGMENT && (void *)(following + 1) <= end && *following == IPPROTO_TCP;
}

PROGRAM(matches)
