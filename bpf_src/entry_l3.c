/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The program that is attached to a tap at tc of a layer 3 device: entry.c, and of each packet as much as the chain looks at
 * in this CPU's ffpf_frame, behind the header that it is shown with.
 */
#include "entry.h"
#include "l3.h"
#include "reach.h"

SEC("tc/ffpf_entry") int ffpf_entry(struct __sk_buff *skb)
{
	struct ffpf_scratch *scratch;
	__u64 cpu, length;

	scratch = begin(&cpu);
	if (!scratch)
		return -1;
	length = ffpf_shown_bytes(skb) + skb->len - ffpf_packet_start(skb);
	if (length > FFPF_LONGEST_FRAME)
		return -1;
	scratch->length = length;
	scratch->copied = copy_reach(skb, &ffpf_tap, cpu, length);
	if (!scratch->copied)
		return -1; /* bytes that nobody may read */
	bpf_tail_call(skb, &ffpf_links, FFPF_NEXT);
	return -1;
}
