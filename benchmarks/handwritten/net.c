/* SPDX-License-Identifier: GPL-2.0-only */
/* net 10.1.0.0/16 */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	return in_network(data, end, bpf_htonl(0x0a010000), bpf_htonl(0xffff0000));
}

PROGRAM(matches)
