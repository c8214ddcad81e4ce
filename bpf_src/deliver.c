/* SPDX-License-Identifier: GPL-2.0-only */
/* Stores a packet in the next slot of this CPU's ring of a flow, or counts that the ring was full. */
#include "ffpf.h"

/*
 * ring: the flow's slots, `slots` (a power of two) of `slot_bytes` for each CPU, this CPU's from `first`.
 * snaplen: at most slot_bytes less the 32 bytes of a block around its data, 4 to 65,535.
 */
FFPF_PRIMITIVE void ffpf_deliver(struct xdp_md *ctx, __u64 length, void *ring, struct ffpf_flow *flow,
				 struct ffpf_cpu *cpu, struct ffpf_scratch *scratch, __u32 first, __u32 slots,
				 __u32 slot_bytes, __u64 snaplen, __u64 longest, __u32 interface)
{
	__u64 head = cpu->head, captured = length, padded, now;
	__u32 index = first + ((__u32)head & (slots - 1));
	struct ffpf_slot *slot;

	if (head - *(volatile __u64 *)&cpu->tail >= slots) {
		cpu->fates[FFPF_RING_FULL]++;
		return;
	}
	slot = bpf_map_lookup_elem(ring, &index);
	if (!slot) {
		cpu->fates[FFPF_RING_FULL]++;
		return;
	}

	/* Each comparison stands alone on the very register that bounds the copy: the verifier does not see through
	 * the folded forms that the optimiser prefers. */
	if (captured > snaplen)
		captured = snaplen;
	FFPF_OPAQUE(captured);
	if (captured > longest)
		captured = longest;
	FFPF_OPAQUE(captured);
	if (captured >= 1 && bpf_xdp_load_bytes(ctx, 0, slot + 1, captured)) {
		cpu->fates[FFPF_RING_FULL]++;
		return;
	}
	if (!scratch->now_ns)
		scratch->now_ns = bpf_ktime_get_ns();
	now = scratch->now_ns + flow->clock_offset_ns;
	slot->interface = interface;
	slot->time_high = now >> 32;
	slot->time_low = now;
	slot->captured = captured;
	slot->original = length;
	padded = (captured + 3) & ~3ull;
	if (padded + sizeof(*slot) + 4 < slot_bytes) {
		__u16 *option = (void *)(slot + 1) + padded;

		option[0] = FFPF_FILL_OPTION;
		option[1] = slot_bytes - sizeof(*slot) - 4 - padded - 4;
	}
	cpu->fates[FFPF_DELIVERED]++;
	FFPF_PUBLISH(&cpu->head, head + 1);
}
