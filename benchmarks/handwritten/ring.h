/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rivals that give packets to user space: `shape_of(data, end)` says what of them, and `rewrite(record, shape)` may
 * change it and make it less. Through a BPF ring buffer, without waking anybody; or, with -DOWN_RING=SLOTS, through the
 * flow's kind of ring: slots of an array for each CPU. With -DAPART=CPUS a record is rewritten in memory of this CPU (a
 * power of two of them) before it is stored, so that whoever maps the ring never sees what it was.
 */
#ifndef RING_H
#define RING_H

#include "node.h"

struct record {
	__u64 time_ns;
	__u32 captured, original;
	__u8 data[SNAPLEN];
};

/* What is wanted of a packet: so many bytes, and where its headers are, for those that look. */
struct shape {
	__u64 wanted, network, transport;
	__u8 version, protocol;
};

#ifndef OWN_RING
extern void records; /* BPF_MAP_TYPE_RINGBUF */

INLINE struct record *reserve(struct counts *counts)
{
	return bpf_ringbuf_reserve(&records, sizeof(struct record), 0);
}

INLINE void submit(struct counts *counts, struct record *record)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

INLINE void discard(struct record *record)
{
	bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}
#else
extern void records; /* BPF_MAP_TYPE_ARRAY of struct record: OWN_RING for each CPU */

/* own[0] is the head, own[1] the tail, which user space moves. */
INLINE struct record *reserve(struct counts *counts)
{
	__u64 head = counts->own[0];
	__u32 at = bpf_get_smp_processor_id() * OWN_RING + (head & (OWN_RING - 1));

	if (head - *(volatile __u64 *)&counts->own[1] >= OWN_RING)
		return 0;
	return bpf_map_lookup_elem(&records, &at);
}

INLINE void submit(struct counts *counts, struct record *record)
{
	asm volatile("" ::: "memory");
	*(volatile __u64 *)&counts->own[0] = counts->own[0] + 1;
}

INLINE void discard(struct record *record)
{
}
#endif

INLINE int fill(struct xdp_md *ctx, struct record *record, __u64 original, __u64 wanted)
{
	record->time_ns = bpf_ktime_get_ns();
	record->original = original;
	asm volatile("" : "+r"(wanted));
	if (wanted > SNAPLEN)
		wanted = SNAPLEN;
	asm volatile("" : "+r"(wanted));
	record->captured = wanted;
	return wanted < 1 ? 0 : bpf_xdp_load_bytes(ctx, 0, record->data, wanted);
}

#ifdef APART
extern struct record apart[APART];

INLINE struct record *place_apart(struct record *record)
{
	__u64 cpu = bpf_get_smp_processor_id();

	asm volatile("" : "+r"(cpu));
	return &apart[cpu & (APART - 1)];
}

/* Whole words, and of the last one what is captured. */
INLINE void store(struct record *record, const struct record *from)
{
	const volatile __u32 *known = &from->captured; /* again, so that the verifier walks on only once */
	__u64 left = *known;
	const __u64 *words = (const void *)from->data;
	__u64 *to = (void *)record->data;

	record->time_ns = from->time_ns;
	record->captured = from->captured;
	record->original = from->original;
#pragma clang loop unroll(disable)
	for (int word = 0; word < SNAPLEN / 8 && left >= 8; word++, left -= 8)
		*to++ = *words++;
	if (left & 7 && to < (__u64 *)(record->data + SNAPLEN))
		*to = *words & ((1ull << 8 * (left & 7)) - 1);
}
#else
INLINE struct record *place_apart(struct record *record)
{
	return record;
}

INLINE void store(struct record *record, const struct record *from)
{
}
#endif

#define GRABBER(shape_of, rewrite)                                                                        \
	INLINE void run(struct xdp_md *ctx)                                                               \
	{                                                                                                 \
		void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;                 \
		struct counts *counts = counts_if_active();                                               \
		struct record *record, *copy;                                                             \
		struct shape shape;                                                                       \
		if (!counts)                                                                              \
			return;                                                                           \
		counts->seen++;                                                                           \
		shape = shape_of(data, end);                                                              \
		record = reserve(counts);                                                                 \
		if (!record) {                                                                            \
			counts->filtered++;                                                               \
			return;                                                                           \
		}                                                                                         \
		copy = place_apart(record);                                                               \
		if (fill(ctx, copy, end - data, shape.wanted)) {                                          \
			discard(record);                                                                  \
			counts->filtered++;                                                               \
			return;                                                                           \
		}                                                                                         \
		rewrite(copy, &shape);                                                                    \
		store(record, copy);                                                                      \
		submit(counts, record);                                                                   \
		counts->passed++;                                                                         \
	}                                                                                                 \
	FILTER(run)

INLINE void as_it_is(struct record *record, const struct shape *shape)
{
}

#endif
