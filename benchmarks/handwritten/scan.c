/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scan: the automaton of Aho and Corasick over the payload, a byte at a time: the class of the byte, then the row of
 * the state. As anybody would write it, for frames of an Ethernet.
 */
#include "node.h"
#include "headers.h"

#define MOST_BYTES 1536
#define STEP_BYTES 8 /* behind one check of the packet's end */
#define FOUND 0x8000 /* in a row, with the pattern's number, instead of the next state */

extern __u8 classes[256];
extern __u16 rows[(65536 << SHIFT) + 256]; /* a row for each number of 16 bits, so that none need be masked */
extern void hits; /* BPF_MAP_TYPE_PERCPU_ARRAY of __u64, for each pattern */

INLINE __u64 next(__u64 state, __u8 byte)
{
	const __u16 *column = rows + classes[byte];

	asm volatile("" : "+r"(column)); /* so that one addition less waits for the state */
	return column[state << SHIFT];
}

INLINE int hit(__u64 state)
{
	__u32 number = state & ~FOUND;
	__u64 *count = bpf_map_lookup_elem(&hits, &number);

	if (count)
		++*count;
	return 1;
}

INLINE int passes(struct packet *packet)
{
	struct headers headers = parse(packet->data, packet->end);
	volatile __u64 *begin = packet->counts->own; /* through memory, so that the verifier walks the loop only once */
	const __u8 *at;
	__u64 state = 0;

	*begin = payload_in(&headers, packet->data, packet->end);
	at = packet->data + (*begin & 0xfff);
#pragma clang loop unroll(disable)
	for (int step = 0; step < MOST_BYTES / STEP_BYTES; step++) {
		if ((void *)(at + STEP_BYTES) > packet->end)
			break;
#pragma unroll
		for (int byte = 0; byte < STEP_BYTES; byte++) {
			state = next(state, at[byte]);
			if (state & FOUND)
				return hit(state);
		}
		at += STEP_BYTES;
	}
#pragma clang loop unroll(disable)
	for (int byte = 0; byte < STEP_BYTES && (void *)(at + 1) <= packet->end; byte++, at++) {
		state = next(state, *at);
		if (state & FOUND)
			return hit(state);
	}
	return 0;
}

NODE(passes)
