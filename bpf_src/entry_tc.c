/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The program that is attached to a tap at tc: entry.c, and the frame as it is on the wire.
 *
 * Most frames are read where they lie. Of the others, those with a tag beside them and those of several pieces whose first
 * one is too short, as much as the chain looks at is copied to this CPU's ffpf_frame.
 */
#include "reach.h"

extern struct ffpf_tap ffpf_tap;
extern __u8 ffpf_frame[];
extern void ffpf_links;
extern const __u32 ffpf_cpus;

SEC("tc/ffpf_entry") int ffpf_entry(struct __sk_buff *skb)
{
	struct ffpf_scratch *scratch = (struct ffpf_scratch *)(&ffpf_tap + 1);
	__u64 cpu, length = skb->len, here = (void *)(long)skb->data_end - (void *)(long)skb->data;
	__u32 is_tagged;

	if (!*(volatile __u32 *)&ffpf_tap.active)
		return -1;
	cpu = bpf_get_smp_processor_id();
	FFPF_OPAQUE(cpu);
	if (cpu >= ffpf_cpus)
		return -1;
	ffpf_enter(&scratch[cpu]);
	scratch[cpu].copied = 0;
	is_tagged = skb->vlan_present;
	if (length > FFPF_LONGEST_FRAME - TAG_BYTES)
		return -1; /* what is proved of a flow says nothing about such frames */
	if (is_tagged || (here < length && here < ffpf_tap.far_reach)) {
		if (is_tagged)
			length += TAG_BYTES;
		scratch[cpu].length = length;
		scratch[cpu].copied =
			copy_reach(skb, &ffpf_tap, ffpf_frame + cpu * FFPF_FRAME_BYTES + FFPF_FRAME_START, length);
	}
	bpf_tail_call(skb, &ffpf_links, FFPF_NEXT);
	return -1;
}
