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
FFPF_PRIMITIVE __s64 ffpf_copy_packet(struct xdp_md *ctx, void *copy, __u64 wanted, __u64 longest)
{
	/* The comparison stands alone on the very register that bounds the copy: the verifier does not see through the
	 * folded forms that the optimiser prefers. */
	FFPF_OPAQUE(wanted);
	if (wanted > longest)
		wanted = longest;
	FFPF_OPAQUE(wanted);
	if (wanted >= 1 && bpf_xdp_load_bytes(ctx, 0, copy, wanted))
		return -1;
	return wanted;
}

/* Copies the packet's first `whole` bytes, at most `most`. 0 if they do not all lie where packet bytes can be read. */
static __always_inline int copy_words(const struct ffpf_packet *packet, struct ffpf_copy *copy, __u64 whole, __u64 most)
{
	const void *from = packet->data;
	__u64 *to = (void *)&copy->before, at;

	if (from + 8 > packet->end)
		return 0;
	*to = *(const __u64 *)from << 16;
	from += 6;
#pragma clang loop unroll(disable)
	for (at = 6; at < most && at + 8 <= whole; at += 8) {
		if (from + 8 > packet->end)
			return 0;
		*++to = *(const __u64 *)from;
		from += 8;
	}
	if (at < whole) {
		from = ffpf_at(packet, whole - 8, 8);
		if (!from)
			return 0;
		*++to = *(const __u64 *)from >> 8 * (at + 8 - whole);
	}
	return 1;
}

/*
 * Copies the packet's first `whole` bytes, at most `most`, to where they are rewritten. Whether that worked. Few bytes, as
 * headers are, are there sooner without the kernel's help.
 */
FFPF_PRIMITIVE int ffpf_begin_copy(struct xdp_md *ctx, const struct ffpf_packet *packet, struct ffpf_copy *copy,
				   __u64 whole, __u64 most, __u64 wanted)
{
	__s64 captured = whole < most ? whole : most;

	copy->wanted = wanted < most ? wanted : most;
	if (!copy_words(packet, copy, captured, most))
		captured = ffpf_copy_packet(ctx, copy->data, whole, most);
	copy->captured = captured;
	return captured >= 0;
}

/*
 * Copies what was rewritten into the slot, at most `longest` bytes, and zeros up to a multiple of 4. Returns how many.
 * `longest` is a multiple of 4, `most`, what the copy's memory has room for, of 8.
 */
FFPF_PRIMITIVE __s64 ffpf_end_copy(struct ffpf_slot *slot, struct ffpf_copy *copy, __u64 longest, __u64 most)
{
	__u64 captured = copy->captured, wanted = copy->wanted, left, at;
	const void *from = &copy->before;
	void *to = (void *)(slot + 1) - 2; /* the end of `original`, which is not stored yet */

	if (longest > most)
		longest = most;
	if (captured > wanted)
		captured = wanted;
	FFPF_OPAQUE(captured);
	if (captured > longest)
		captured = longest;
	FFPF_OPAQUE(captured);
	if (captured & 3)
		*(__u32 *)((void *)(slot + 1) + (captured & ~3ull)) = 0;
	/* What is left goes through memory, or the verifier would tell apart the turns after which the loop may end. */
	copy->captured = captured;
	left = copy->captured + 2;
#pragma clang loop unroll(disable)
	for (at = 6; at <= longest && left >= 8; at += 8) {
		*(__u64 *)to = *(const __u64 *)from;
		to += 8;
		from += 8;
		left -= 8;
	}
	if (left & 4 && at <= longest + 4) {
		*(__u32 *)to = *(const __u32 *)from;
		to += 4;
		from += 4;
	}
	if (left & 2) {
		*(__u16 *)to = *(const __u16 *)from;
		to += 2;
		from += 2;
	}
	if (left & 1)
		*(__u8 *)to = *(const __u8 *)from;
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
