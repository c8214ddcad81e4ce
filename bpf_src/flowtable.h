/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A bounded table of flows, shared by all CPUs without a lock: a hash (known as a tag) chooses a bucket of 8 flows, and a
 * new flow takes the place of the one that was quiet for longest there.
 *
 * A word counts what was used of a flow in its lower 40 bits; the upper 24 say when it was last seen, in steps of 4
 * jiffies (4 to 40 ms), which wrap around after 18 hours or more: then a quiet flow may pass for a recent one until it is
 * seen again.
 */
#ifndef FFPF_FLOWTABLE_H
#define FFPF_FLOWTABLE_H

#include "dissect.h"

#define FFPF_BUCKET 8
#define FFPF_TAKEN 1 /* a tag: somebody is just writing here */
#define FFPF_USED_BITS 40
#define FFPF_USED_MASK ((1ull << FFPF_USED_BITS) - 1)
#define FFPF_STAMP_MASK 0xffffffull

struct ffpf_bucket {
	__u64 tags[FFPF_BUCKET]; /* 0: free */
	__u64 used[FFPF_BUCKET];
};

struct ffpf_place {
	__u64 *used; /* 0: the race for a place was lost */
	__u8 is_new;
	__u8 evicted; /* another flow was there */
};

static __always_inline __u64 ffpf_stamp(void)
{
	return bpf_jiffies64() >> 2 & FFPF_STAMP_MASK;
}

/*
 * The place of the flow with that hash, which it is given now if it has none. `buckets` is a power of two. Two CPUs that
 * see the first packets of a flow at the same moment may both give it a place; the first place is found from then on.
 */
static __always_inline struct ffpf_place ffpf_flow_place(void *table, __u64 buckets, __u64 hash)
{
	__u64 offset = (hash & (buckets - 1)) * sizeof(struct ffpf_bucket), tag = hash | 2, now, oldest = 0, victim;
	struct ffpf_place place = {};
	struct ffpf_bucket *bucket;
	int chosen = 0;

	FFPF_OPAQUE(offset);
	offset &= (buckets - 1) * sizeof(struct ffpf_bucket);
	bucket = table + offset;
#pragma clang loop unroll(full)
	for (int at = 0; at < FFPF_BUCKET; at++) {
		if (*(volatile __u64 *)&bucket->tags[at] == tag) {
			place.used = &bucket->used[at];
			return place;
		}
	}
	now = ffpf_stamp();
#pragma clang loop unroll(full)
	for (int at = 0; at < FFPF_BUCKET; at++) {
		__u64 quiet = (now - (bucket->used[at] >> FFPF_USED_BITS) & FFPF_STAMP_MASK) + 1;

		if (quiet > FFPF_STAMP_MASK / 2) /* seen in the future: two CPUs moved its stamp at once */
			quiet = 1;
		if (!bucket->tags[at])
			quiet = ~0ull - at;
		if (quiet > oldest) {
			oldest = quiet;
			chosen = at;
		}
	}
	offset += chosen * sizeof(__u64);
	FFPF_OPAQUE(offset);
	offset &= (buckets - 1) * sizeof(struct ffpf_bucket) | (FFPF_BUCKET - 1) * sizeof(__u64);
	bucket = table + offset; /* the chosen tag is its first now */
	victim = *(volatile __u64 *)&bucket->tags[0];
	if (victim != FFPF_TAKEN && __sync_val_compare_and_swap(&bucket->tags[0], victim, FFPF_TAKEN) == victim) {
		place.used = &bucket->used[0];
		*(volatile __u64 *)place.used = now << FFPF_USED_BITS;
		FFPF_PUBLISH(&bucket->tags[0], tag);
		place.is_new = 1;
		place.evicted = victim != 0;
	}
	return place;
}

/*
 * Whether less than `most` of the flow was used before this packet, which then uses `amount` more. Without a place nothing
 * was counted, so the packet is left out: the flow's next one gets the place. A second try would double what the verifier
 * walks.
 */
static __always_inline int ffpf_flow_add(__u64 *used, __u64 most, __u64 amount)
{
	__u64 before, quiet;

	if (!used)
		return 0;
	before = *(volatile __u64 *)used;
	quiet = ffpf_stamp() - (before >> FFPF_USED_BITS) & FFPF_STAMP_MASK;
	if ((before & FFPF_USED_MASK) < most)
		before = __sync_fetch_and_add(used, amount + (quiet << FFPF_USED_BITS));
	else if (quiet)
		__sync_fetch_and_add(used, quiet << FFPF_USED_BITS);
	return (before & FFPF_USED_MASK) < most;
}

#endif
