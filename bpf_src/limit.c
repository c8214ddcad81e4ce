/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * limit: a token bucket for all CPUs, as the generic cell rate algorithm (ITU-T I.371): one word says up to when the
 * packets that passed have used the rate. bucket: __u64, in 1/256 ns of the monotonic clock.
 */
#include "ffpf.h"

#define MOST_TRIES 8
#define SLACK (1ull << 40) /* 4 s: clocks of CPUs do not differ by more, and nothing else lies beyond the burst */

/*
 * A packet, or a byte, takes multiplier >> shift of the time; `burst` is the time that a full bucket lasts, and `longest`
 * how many that are: what more would take may not fit into 64 bits. What the bucket says lies between now and
 * now + burst; anything else is old, or nothing yet.
 */
FFPF_PRIMITIVE int ffpf_limit(const struct ffpf_packet *packet, void *mbuf, void *bucket, __u64 by_bytes,
			      __u64 multiplier, __u64 shift, __u64 burst, __u64 longest)
{
	__u64 now = ffpf_now_ns(packet) << 8, amount = by_bytes ? ffpf_length(packet) : 1, cost, used, ahead;

	if (amount > longest)
		return 0;
	cost = amount * multiplier >> shift;
#pragma clang loop unroll(disable)
	for (int tries = 0; tries < MOST_TRIES; tries++) {
		used = *(volatile __u64 *)bucket;
		ahead = used - now;
		if (ahead > burst + SLACK)
			ahead = 0;
		if (ahead + cost > burst)
			return 0;
		if (__sync_val_compare_and_swap((__u64 *)bucket, used, now + ahead + cost) == used)
			return 1;
	}
	return 0;
}
