/* SPDX-License-Identifier: GPL-2.0-only */
/* sampler: the first packet on a CPU, then every one_in-th after it. mbuf: __u32, packets still to leave out. */
#include "ffpf.h"

FFPF_PRIMITIVE int ffpf_sampler(const struct ffpf_packet *packet, void *mbuf, __u64 one_in)
{
	__u32 *left_out = mbuf, left = *left_out;

	*left_out = left ? left - 1 : one_in - 1;
	return left == 0;
}
