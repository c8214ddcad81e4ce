/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * limit: a token bucket for all CPUs without a lock: up to when the packets that passed have used the rate. A packet
 * takes COST_NS of it, a full bucket lasts BURST_NS.
 */
#include "node.h"

extern __u64 bucket;

INLINE int passes(struct packet *packet)
{
	__u64 now = bpf_ktime_get_ns(), used, from;

#pragma clang loop unroll(disable)
	for (int tries = 0; tries < 8; tries++) {
		used = *(volatile __u64 *)&bucket;
		from = used > now ? used : now;
		if (from + COST_NS > now + BURST_NS)
			return 0;
		if (__sync_val_compare_and_swap(&bucket, used, from + COST_NS) == used)
			return 1;
	}
	return 0;
}

NODE(passes)
