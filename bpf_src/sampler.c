/* SPDX-License-Identifier: GPL-2.0-only */
/* sampler: a share of the packets. mbuf: __u32, packets still to leave out (of the first). */
#include "dissect.h"

/* The first packet on a CPU, then every one_in-th after it. */
FFPF_PRIMITIVE int ffpf_sampler(const struct ffpf_packet *packet, void *mbuf, __u64 one_in)
{
	__u32 *left_out = mbuf, left = *left_out;

	*left_out = left ? left - 1 : one_in - 1;
	return left == 0;
}

/* Each packet with the probability threshold / 2^32. */
FFPF_PRIMITIVE int ffpf_sampler_random(const struct ffpf_packet *packet, void *mbuf, __u64 threshold)
{
	return bpf_get_prandom_u32() < threshold;
}

/* The flows whose hash has an upper half below threshold. */
FFPF_PRIMITIVE int ffpf_sampler_flow(const struct ffpf_packet *packet, void *mbuf, __u64 threshold)
{
	return ffpf_flow_hash(packet) >> 32 < threshold;
}
