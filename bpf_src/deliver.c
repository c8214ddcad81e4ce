/* SPDX-License-Identifier: GPL-2.0-only */
/* Stores a packet in the next slot of this CPU's ring of a flow, in steps between which transforms change the copy. */
#include "ffpf.h"

/* Whether the ring has room for `wanted` more, by what was known of its readers. */
FFPF_PRIMITIVE int ffpf_has_room(const struct ffpf_ring *ring, __u64 wanted)
{
	return ring->head + wanted <= ring->limit;
}

/* Likewise, by where its only reader is now, which reads all of it. */
FFPF_PRIMITIVE int ffpf_make_room(struct ffpf_ring *ring, __u64 wanted, __u32 slots)
{
	const volatile struct ffpf_reader *reader = (void *)(ring + 1);

	ring->limit = (reader->pace == FFPF_SLOW ? reader->tail : ring->head) + slots;
	return ring->head + wanted <= ring->limit;
}

/* Likewise, by where its readers are, which have index rings. */
FFPF_PRIMITIVE int ffpf_make_shared_room(struct ffpf_ring *ring, __u64 wanted, __u32 slots)
{
	const volatile struct ffpf_reader *reader = (void *)(ring + 1);
	__u32 readers = *(volatile __u32 *)&ring->readers;
	__u64 oldest = ring->head;

#pragma clang loop unroll(disable)
	for (__u32 number = 0; number < FFPF_MOST_READERS && number < readers; number++, reader++) {
		__u64 first = reader->first, wait = reader->wait;

		if (reader->pace != FFPF_SLOW || reader->indexed == reader->tail)
			continue;
		if (wait < first)
			wait = first;
		if (wait < oldest)
			oldest = wait;
		FFPF_OPAQUE(oldest);
	}
	ring->limit = oldest + slots;
	return ring->head + wanted <= ring->limit;
}

/* What tells a packet from others of this CPU, at whichever of a flow's taps. */
static __always_inline __u64 ffpf_number(const struct ffpf_packet *packet, __u32 tap)
{
	return packet->scratch->packet << 8 | tap;
}

/* Whether an earlier segment stored the packet in the ring. */
FFPF_PRIMITIVE int ffpf_is_stored(const struct ffpf_packet *packet, const struct ffpf_ring *ring, __u32 tap)
{
	return ring->stored == ffpf_number(packet, tap);
}

/*
 * Rings the bell (a BPF ring buffer, into which nothing is written) if the reader sleeps until the entry of this number,
 * which is published: without an index ring, the record. That it says so is looked at behind the publication; where the
 * CPU does it earlier all the same (stores wait in its buffer, on x86), the reader, which looks once more, sees the entry
 * (capture/waiting.py).
 */
FFPF_PRIMITIVE void ffpf_wake_reader(const struct ffpf_reader *reader, __u64 number, void *bell)
{
	if (__builtin_expect(*(const volatile __u64 *)&reader->bell == number, 0))
		bpf_ringbuf_output(bell, (void *)reader, 0, BPF_RB_FORCE_WAKEUP);
}

/*
 * The entry of that number in a reader's index ring says the position, which is of a record that is for it. Only a reader
 * that had given back all the others can be asleep, so as long as it is busy nothing else is looked at.
 */
static __always_inline void publish_entry(struct ffpf_reader *reader, __u64 number, __u64 position, void *bell)
{
	FFPF_PUBLISH(&reader->indexed, number + 1);
	if (number == *(volatile __u64 *)&reader->tail) {
		reader->first = position;
		ffpf_wake_reader(reader, number, bell);
	}
}

/* Notes in a reader's index ring, of so many entries, that the last record is for it. */
FFPF_PRIMITIVE void ffpf_note_record(const struct ffpf_ring *ring, struct ffpf_reader *reader, __u64 *index, __u32 slots,
				     void *bell)
{
	__u64 position = ring->head - 1, number = reader->indexed;

	index[number & (slots - 1)] = position;
	publish_entry(reader, number, position, bell);
}

/* Likewise, and what the packet was to its flow. */
FFPF_PRIMITIVE void ffpf_note_tagged(const struct ffpf_ring *ring, struct ffpf_reader *reader, struct ffpf_entry *index,
				     __u32 slots, void *bell, __u32 sinks, __u64 result)
{
	__u64 position = ring->head - 1, number = reader->indexed;
	struct ffpf_entry *entry = &index[number & (slots - 1)];

	entry->position = position;
	entry->sinks = sinks;
	entry->result = result;
	publish_entry(reader, number, position, bell);
}

/* The slot that comes next. slots: `count` (a power of two) for each CPU, this CPU's from `first` on. */
FFPF_PRIMITIVE struct ffpf_slot *ffpf_next_slot(void *slots, const struct ffpf_ring *ring, __u32 first, __u32 count)
{
	__u32 index = first + ((__u32)ring->head & (count - 1));

	return bpf_map_lookup_elem(slots, &index);
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

/* Copies the packet's first `whole` bytes, at most `most`. 0 if they do not all lie where packet bytes can be read. */
static __always_inline int copy_words(const struct ffpf_packet *packet, struct ffpf_copy *copy, __u64 whole, __u64 most)
{
	const void *from = packet->data;
	__u64 *to = (void *)&copy->before, at;
	__s64 left = whole - 6;

	/* What is left is counted, instead of comparing `at` with `whole`: before 6.8 the verifier decides only comparisons
	 * with what it knows on the right, and would walk ways on which `whole` contradicts itself. */
	if (from + 8 > packet->end)
		return 0;
	*to = *(const __u64 *)from << 16;
	from += 6;
#pragma clang loop unroll(disable)
	for (at = 6; at < most && left >= 8; at += 8) {
		if (from + 8 > packet->end)
			return 0;
		*++to = *(const __u64 *)from;
		from += 8;
		left -= 8;
		FFPF_OPAQUE(left);
	}
	if (left > 0) {
		from = ffpf_at(packet, whole - 8, 8);
		if (!from)
			return 0;
		*++to = *(const __u64 *)from >> 8 * (8 - left);
	}
	return 1;
}

/*
 * Copies the packet's first `whole` bytes, at most `most`, to where they are rewritten. Whether that worked. Few bytes, as
 * headers are, are there sooner without the kernel's help.
 */
FFPF_PRIMITIVE int ffpf_begin_copy(void *ctx, const struct ffpf_packet *packet, struct ffpf_copy *copy,
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

/* Fills in the rest of a slot that holds `captured` bytes. */
FFPF_PRIMITIVE void ffpf_fill_slot(const struct ffpf_packet *packet, struct ffpf_slot *slot, const struct ffpf_flow *flow,
				   __u64 captured, __u32 slot_bytes, __u32 interface)
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
}

/* The slot that was filled is the readers'. The number of the record. */
FFPF_PRIMITIVE __u64 ffpf_publish_slot(const struct ffpf_packet *packet, struct ffpf_ring *ring, __u32 tap)
{
	__u64 number = ring->head;

	ring->stored = ffpf_number(packet, tap);
	FFPF_PUBLISH(&ring->head, number + 1);
	return number;
}
