/* SPDX-License-Identifier: GPL-2.0-only */
/* host 10.0.0.1 */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	return in_network(data, end, bpf_htonl(0x0a000001), 0xffffffff);
}

PROGRAM(matches)
