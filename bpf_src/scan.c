/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scan: packets in which one of the patterns is; the result is its number, from 1. mbuf: struct memory; table: that of
 * ffpf_bpf/graph/automaton.py.
 *
 * A byte is two dependent loads, and what they take is latency. So three parts of the packet are scanned at once, each
 * a match longer than a third: a match that ends in a part lies in it whole. The first part that found something knows
 * the match that ends first.
 *
 * The loops are driven by the kernel's iterator (Linux 6.4): the verifier walks a loop of another kind once for each
 * turn that it could take, this one until nothing new comes up.
 */
#include "dissect.h"

#define STEP_BYTES 8 /* scanned behind one check of the packet's end */
#define STEPS 8      /* behind one call of the iterator, which takes 8 ns */
#define CLASSES_BYTES 256
#define CUT (~0ull)

struct bpf_iter_num;
extern int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end);
extern int *bpf_iter_num_next(struct bpf_iter_num *it);
extern void bpf_iter_num_destroy(struct bpf_iter_num *it);

struct memory {
	__u64 unscanned; /* packets not scanned to their end, in which nothing was found */
	/* Of this packet: in memory, so that the verifier forgets how it came about. */
	volatile __u64 length, at, end, state;
	__u64 hits[]; /* packets for each pattern */
};

/* Numbers are constants where this is inlined. */
struct automaton {
	__u64 table;
	__u64 shift;
	__u64 wide;
	__u64 accepting;
	__u64 reach;
};

/*
 * The state after a byte, in 7 instructions: sums are written, and kept, so that each takes the place of its first part,
 * and only the last one and the last load wait for the state before. In order, or many loads come first, for which there
 * are no registers.
 */
static __always_inline __u64 next(const struct automaton *automaton, __u64 state, __u64 byte)
{
	__u64 class = ((const __u8 *)byte)[automaton->table];

	class = (__u64)((const __u8 *)(class << automaton->wide) + automaton->table);
	asm("" : "+r"(class));
	state = *(const __u16 *)((const __u8 *)(state << automaton->shift) + class + CLASSES_BYTES);
	asm volatile("" : "+r"(state) : : "memory");
	return state;
}

/*
 * Scans byte by byte, what is short. The last state, which is from `accepting` on if something was found; CUT if not all
 * could be read.
 */
static __always_inline __u64 scan_short(const struct ffpf_packet *packet, struct bpf_iter_num *turns,
					const struct automaton *automaton, __u64 at, __u64 end)
{
	__u64 state = 0;

	while (bpf_iter_num_next(turns)) {
#pragma clang loop unroll(disable)
		for (int step = 0; step < STEPS; step++) {
			const __u8 *byte;

			if (at >= end)
				return state;
			byte = ffpf_at(packet, at, 1);
			if (!byte)
				return CUT;
			state = next(automaton, state, *byte);
			at++;
		}
	}
	return CUT;
}

/* The same by three parts of `bytes` each, a multiple of STEP_BYTES: the first begins at `at`, the last ends at `end`. */
static __always_inline __u64 scan_parts(const struct ffpf_packet *packet, struct bpf_iter_num *turns,
					const struct automaton *automaton, __u64 at, __u64 end, __u64 bytes)
{
	__u64 first = 0, second = 0, third = 0;
	__u64 stop = at + bytes, third_at = end - bytes, second_at = (at + third_at) / 2;

	while (bpf_iter_num_next(turns)) {
#pragma clang loop unroll(disable)
		for (int step = 0; step < STEPS; step++) {
			const __u8 *a, *b, *c;

			if (at >= stop)
				return second >= automaton->accepting ? second : third;
			a = ffpf_at(packet, at, STEP_BYTES);
			b = ffpf_at(packet, second_at, STEP_BYTES);
			c = ffpf_at(packet, third_at, STEP_BYTES);
			if (!a || !b || !c)
				return CUT;
#pragma clang loop unroll(full)
			for (int number = 0; number < STEP_BYTES; number++) {
				first = next(automaton, first, a[number]);
				second = next(automaton, second, b[number]);
				third = next(automaton, third, c[number]);
			}
			if (first >= automaton->accepting)
				return first;
			at += STEP_BYTES;
			second_at += STEP_BYTES;
			third_at += STEP_BYTES;
		}
	}
	return CUT;
}

static __always_inline __u64 scan(const struct ffpf_packet *packet, struct memory *memory,
				  const struct automaton *automaton)
{
	__u64 at = memory->at, end = memory->end, bytes = end - at, part, state, iterator;
	struct bpf_iter_num *turns = (struct bpf_iter_num *)&iterator;

	part = (bytes + 2 * automaton->reach + 3 * STEP_BYTES - 1) / (3 * STEP_BYTES) * STEP_BYTES;
	bpf_iter_num_new(turns, 0, FFPF_FARTHEST);
	if (part <= bytes)
		state = scan_parts(packet, turns, automaton, at, end, part);
	else
		state = scan_short(packet, turns, automaton, at, end);
	bpf_iter_num_destroy(turns);
	return state;
}

FFPF_PRIMITIVE int ffpf_scan(const struct ffpf_packet *packet, void *mbuf, void *table, __u64 shift, __u64 wide,
			     __u64 accepting, __u64 reach, __u64 row, __u64 patterns, __u64 whole_frame)
{
	struct automaton automaton = {(__u64)table, shift, wide, accepting, reach};
	struct memory *memory = mbuf;
	__u64 number;

	FFPF_OPAQUE(automaton.table);
	memory->at = 0;
	if (!whole_frame)
		memory->at = ffpf_headers(packet).payload;
	memory->length = packet->length;
	memory->end = packet->length;
	if (memory->end > FFPF_FARTHEST)
		memory->end = FFPF_FARTHEST;
	if (memory->at > memory->end)
		memory->at = memory->end;
	memory->state = scan(packet, memory, &automaton);
	if (memory->state == CUT || memory->state < accepting) {
		if (memory->state == CUT || memory->length > memory->end)
			memory->unscanned++;
		return -1;
	}
	number = (memory->state - accepting) / row;
	FFPF_OPAQUE(number);
	if (number >= patterns)
		return -1;
	memory->hits[number]++;
	return number + 1;
}
