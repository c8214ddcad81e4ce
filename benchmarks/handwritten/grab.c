/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * grab: time, length and the first SNAPLEN bytes of a packet, or with -DSNAP=N its headers and N bytes, to user space:
 * through a BPF ring buffer, without waking anybody; or, with -DOWN_RING=SLOTS, through the flow's kind of ring: slots
 * of a mapped array for each CPU.
 */
#include "node.h"
#include "headers.h"

struct record {
	__u64 time_ns;
	__u32 captured, original;
	__u8 data[SNAPLEN];
};

INLINE __u64 wanted_of(void *data, void *end)
{
	__u64 wanted = end - data;

#ifdef SNAP
	struct headers headers = parse(data, end);
	__u64 shown = headers.transport - data;

	if (headers.version && headers.fragment != 2) {
		struct tcp *tcp = headers.transport;

		if (headers.protocol == IPPROTO_TCP)
			shown = (void *)(tcp + 1) > end ? wanted : shown + (tcp->offset >> 4) * 4;
		else if (headers.protocol == IPPROTO_UDP || headers.protocol == IPPROTO_ICMP ||
			 headers.protocol == IPPROTO_ICMPV6)
			shown += 8;
		else if (headers.protocol == IPPROTO_SCTP)
			shown += 12;
	}
	shown = (shown < wanted ? shown : wanted) + SNAP;
	if (wanted > shown)
		wanted = shown;
#endif
	asm volatile("" : "+r"(wanted));
	if (wanted > SNAPLEN)
		wanted = SNAPLEN;
	asm volatile("" : "+r"(wanted));
	return wanted;
}

INLINE int fill(struct xdp_md *ctx, struct record *record, __u64 original, __u64 wanted)
{
	record->time_ns = bpf_ktime_get_ns();
	record->captured = wanted;
	record->original = original;
	return wanted < 1 ? 0 : bpf_xdp_load_bytes(ctx, 0, record->data, wanted);
}

#ifndef OWN_RING
extern void records; /* BPF_MAP_TYPE_RINGBUF */

INLINE int store(struct xdp_md *ctx, struct counts *counts, __u64 original, __u64 wanted)
{
	struct record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (!record)
		return 0;
	if (fill(ctx, record, original, wanted)) {
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return 0;
	}
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 1;
}
#else
extern void records; /* BPF_MAP_TYPE_ARRAY of struct record: OWN_RING for each CPU */

/* own[0] is the head, own[1] the tail, which user space moves. */
INLINE int store(struct xdp_md *ctx, struct counts *counts, __u64 original, __u64 wanted)
{
	__u64 head = counts->own[0];
	__u32 at = bpf_get_smp_processor_id() * OWN_RING + (head & (OWN_RING - 1));
	struct record *record;

	if (head - *(volatile __u64 *)&counts->own[1] >= OWN_RING)
		return 0;
	record = bpf_map_lookup_elem(&records, &at);
	if (!record || fill(ctx, record, original, wanted))
		return 0;
	asm volatile("" ::: "memory");
	*(volatile __u64 *)&counts->own[0] = head + 1;
	return 1;
}
#endif

SEC("xdp/filter") int filter(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct counts *counts = counts_if_active();

	if (!counts)
		return XDP_PASS;
	counts->seen++;
	if (store(ctx, counts, end - data, wanted_of(data, end)))
		counts->passed++;
	else
		counts->filtered++;
	return XDP_PASS;
}
