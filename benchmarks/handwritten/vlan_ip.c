/* SPDX-License-Identifier: GPL-2.0-only */
/* vlan and ip */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	struct ethhdr *ethernet = data;
	__be16 *tag = (void *)(ethernet + 1);

	if ((void *)(tag + 2) > end)
		return 0;
	if (ethernet->h_proto != bpf_htons(ETH_P_8021Q) && ethernet->h_proto != bpf_htons(ETH_P_8021AD) &&
	    ethernet->h_proto != bpf_htons(0x9100))
		return 0;
	return tag[1] == bpf_htons(ETH_P_IP);
}

PROGRAM(matches)
