/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * head: the first MOST packets of each flow, known by its 64-bit hash. As anybody would write it, with an LRU hash map;
 * or, with -DOWN_TABLE=BUCKETS, with the node class's algorithm: buckets of 8, the quietest flow gives way.
 */
#include "node.h"
#include "flowhash.h"

#ifndef OWN_TABLE
extern void flows; /* BPF_MAP_TYPE_LRU_HASH, __u64 -> __u64 packets */

INLINE int passes(struct packet *packet)
{
	__u64 hash = flow_hash(packet->data, packet->end, state.seed), one = 1;
	__u64 *packets = bpf_map_lookup_elem(&flows, &hash);

	if (!packets) {
		bpf_map_update_elem(&flows, &hash, &one, BPF_NOEXIST);
		packet->counts->own[0]++;
		return 1;
	}
	return *packets < MOST && __sync_fetch_and_add(packets, 1) < MOST;
}
#else
#define WAYS 8
#define TAKEN 1 /* a tag: somebody is just writing here */
#define TICK_SHIFT 24
struct bucket {
	__u64 tags[WAYS];                    /* 0: free */
	struct { __u32 packets, seen; } used[WAYS]; /* last seen, in ticks of 16.8 ms */
};
extern struct bucket buckets[OWN_TABLE];

INLINE int passes(struct packet *packet)
{
	volatile __u64 *known = &packet->counts->own[2]; /* through memory, so that the verifier walks the table only once */
	__u64 hash = (*known = flow_hash(packet->data, packet->end, state.seed), *known), tag = hash | 2, victim;
	__u32 now = bpf_ktime_get_coarse_ns() >> TICK_SHIFT, quietest = 0, place = 0;
	struct bucket *bucket = &buckets[hash & (OWN_TABLE - 1)];

#pragma unroll
	for (int way = 0; way < WAYS; way++) {
		if (*(volatile __u64 *)&bucket->tags[way] == tag) {
			if (bucket->used[way].seen != now)
				bucket->used[way].seen = now;
			return bucket->used[way].packets < MOST &&
			       __sync_fetch_and_add(&bucket->used[way].packets, 1) < MOST;
		}
	}
#pragma unroll
	for (int way = 0; way < WAYS; way++) {
		__u32 quiet = bucket->tags[way] ? now - bucket->used[way].seen + 1 : ~0u - way;

		if (quiet > quietest) {
			quietest = quiet;
			place = way;
		}
	}
	asm volatile("" : "+r"(place));
	place &= WAYS - 1;
	victim = bucket->tags[place];
	if (victim == TAKEN || __sync_val_compare_and_swap(&bucket->tags[place], victim, TAKEN) != victim)
		return 1;
	bucket->used[place].packets = 1;
	bucket->used[place].seen = now;
	asm volatile("" ::: "memory");
	*(volatile __u64 *)&bucket->tags[place] = tag;
	packet->counts->own[0]++;
	packet->counts->own[1] += victim != 0;
	return 1;
}
#endif

NODE(passes)
