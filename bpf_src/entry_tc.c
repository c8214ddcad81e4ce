/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The program that is attached to a tap at tc: entry.c, and the frame as it is on the wire.
 *
 * Most frames are read where they lie. Of the others, those with a tag beside them and those of several pieces whose first
 * one is too short, as much as the chain looks at is copied to this CPU's ffpf_frame.
 */
#include "entry.h"
#include "reach.h"

SEC("tc/ffpf_entry") int ffpf_entry(struct __sk_buff *skb)
{
	struct ffpf_scratch *scratch;
	__u64 cpu, length = skb->len, here = (void *)(long)skb->data_end - (void *)(long)skb->data;
	__u32 is_tagged;

	scratch = begin(&cpu);
	if (!scratch)
		return -1;
	scratch->copied = 0;
	is_tagged = skb->vlan_present;
	if (length > FFPF_LONGEST_FRAME - TAG_BYTES)
		return -1;
	if (is_tagged || (here < length && here < ffpf_tap.far_reach)) {
		if (is_tagged)
			length += TAG_BYTES;
		scratch->length = length;
		scratch->copied = copy_reach(skb, &ffpf_tap, cpu, length);
	}
	bpf_tail_call(skb, &ffpf_links, FFPF_NEXT);
	return -1;
}
