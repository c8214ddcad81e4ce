/* SPDX-License-Identifier: GPL-2.0-only */
/* Stores a packet in the next slot of this CPU's ring of a flow, in steps between which transforms change the copy. */
#include "ffpf.h"

/* Whether the ring has room for `wanted` more. */
FFPF_PRIMITIVE int ffpf_has_room(const struct ffpf_cpu *cpu, __u64 wanted, __u32 slots)
{
	return cpu->head - *(volatile __u64 *)&cpu->tail + wanted <= slots;
}

/* The slot that comes next. ring: `slots` (a power of two) for each CPU, this CPU's from `first` on. */
FFPF_PRIMITIVE struct ffpf_slot *ffpf_next_slot(void *ring, const struct ffpf_cpu *cpu, __u32 first, __u32 slots)
{
	__u32 index = first + ((__u32)cpu->head & (slots - 1));

	return bpf_map_lookup_elem(ring, &index);
}

/* Copies the packet's first `wanted` bytes, at most `longest`, 4 to 65,535. Returns how many, or -1. */
FFPF_PRIMITIVE __s64 ffpf_copy_packet(void *ctx, void *copy, __u64 wanted, __u64 longest)
{
	/* The comparison stands alone on the very register that bounds the copy: the verifier does not see through the
	 * folded forms that the optimiser prefers. */
	FFPF_OPAQUE(wanted);
	if (wanted > longest)
		wanted = longest;
	FFPF_OPAQUE(wanted);
	if (!ffpf_is_none(wanted) && ffpf_load_frame(ctx, copy, wanted, longest))
		return -1;
	return wanted;
}

/* Copies the packet's first `whole` bytes, at most `most`, to where they are rewritten. Whether that worked. */
FFPF_PRIMITIVE int ffpf_begin_copy(void *ctx, struct ffpf_copy *copy, __u64 whole, __u64 most, __u64 wanted)
{
	__s64 captured = ffpf_copy_packet(ctx, copy->data, whole, most);

	copy->captured = captured;
	copy->wanted = wanted;
	return captured >= 0;
}

/*
 * Copies what was rewritten into the slot, at most `longest` bytes, and zeros up to a multiple of 4. Returns how many.
 * `longest` and `most`, what the copy's memory has room for, are multiples of 4.
 */
FFPF_PRIMITIVE __s64 ffpf_end_copy(struct ffpf_slot *slot, struct ffpf_copy *copy, __u64 longest, __u64 most)
{
	__u64 captured = copy->captured, wanted = copy->wanted, left;
	const __u64 *from = (const void *)copy->data;
	__u64 *to = (void *)(slot + 1);

	if (longest > most)
		longest = most;
	if (captured > wanted)
		captured = wanted;
	FFPF_OPAQUE(captured);
	if (captured > longest)
		captured = longest;
	FFPF_OPAQUE(captured);
	/* What is left goes through memory, or the verifier would tell apart the turns after which the loop may end. */
	copy->captured = captured;
	left = copy->captured;
#pragma clang loop unroll(disable)
	for (__u64 at = 0; at < longest && left; at += 8) {
		__u64 word = *from++;

		if (left < 8)
			word &= (1ull << 8 * left) - 1;
		if (left <= 4) {
			*(__u32 *)to = word;
			break;
		}
		*to++ = word;
		left -= left < 8 ? left : 8;
	}
	return captured;
}

/* Fills in the rest of a slot that holds `captured` bytes and publishes it. tag_bytes: sizeof(struct ffpf_tag), or 0. */
FFPF_PRIMITIVE void ffpf_publish_slot(const struct ffpf_packet *packet, struct ffpf_slot *slot,
				      const struct ffpf_flow *flow, struct ffpf_cpu *cpu, __u64 captured,
				      __u32 slot_bytes, __u32 interface, __u32 tag_bytes, __u32 sinks, __u64 result)
{
	__u64 now = ffpf_now_ns(packet) + flow->clock_offset_ns, padded = (captured + 3) & ~3ull;

	slot->interface = interface;
	slot->time_high = now >> 32;
	slot->time_low = now;
	slot->captured = captured;
	slot->original = packet->length;
	if (padded + sizeof(*slot) + 4 < slot_bytes) {
		__u16 *option = (void *)(slot + 1) + padded;

		option[0] = FFPF_FILL_OPTION;
		option[1] = slot_bytes - sizeof(*slot) - 4 - padded - 4;
	}
	if (tag_bytes) {
		struct ffpf_tag *tag = (void *)slot + slot_bytes - 4 - sizeof(*tag);

		tag->sinks = sinks;
		tag->result = result;
	}
	FFPF_PUBLISH(&cpu->head, cpu->head + 1);
}
