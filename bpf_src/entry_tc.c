/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The program that is attached to a tap at tc: entry.c, and the frame as it is on the wire.
 *
 * Most frames are read where they lie. Of the others, those with a tag beside them and those of several pieces whose first
 * one is too short, as much as the chain looks at is copied to this CPU's ffpf_frame.
 */
#include "dissect.h"
#include "tc.h"

#define LEAST_COPIED 64 /* up to the type behind two tags, and the next header of an IPv6 header behind that */

extern struct ffpf_tap ffpf_tap;
extern __u8 ffpf_frame[];
extern void ffpf_links;
extern const __u32 ffpf_cpus;

/* Copies `bytes` of the frame, as many as it has and fit; how many, or 0. */
static __always_inline __u64 copy(struct __sk_buff *skb, __u8 *frame, __u64 bytes, __u64 length)
{
	if (bytes > length)
		bytes = length;
	FFPF_OPAQUE(bytes);
	if (ffpf_is_none(bytes) || bytes > FFPF_LONGEST_REACH)
		return 0;
	if (skb->vlan_present ? ffpf_load_tagged(skb, frame, bytes, FFPF_LONGEST_REACH)
			      : bpf_skb_load_bytes(skb, 0, frame, bytes))
		return 0;
	return bytes;
}

/* Whether a frame, of which LEAST_COPIED bytes are here, is IPv6 with an extension header, or may be. */
static __always_inline int is_extended(const __u8 *frame)
{
	__u64 at = FFPF_MACS_BYTES;
	__u16 type = ffpf_be16(frame + at);
	__u8 next;

#pragma clang loop unroll(full)
	for (int tag = 0; tag < 2; tag++) {
		if (type == 0x8100 || type == 0x88a8 || type == 0x9100)
			at += FFPF_TAG_BYTES;
		FFPF_OPAQUE(at);
		at &= 31;
		type = ffpf_be16(frame + at);
	}
	next = frame[at + 8];
	return type == 0x86dd && next != FFPF_TCP && next != FFPF_UDP && next != FFPF_ICMP6;
}

SEC("tc/ffpf_entry") int ffpf_entry(struct __sk_buff *skb)
{
	struct ffpf_scratch *scratch = (struct ffpf_scratch *)(&ffpf_tap + 1);
	__u64 cpu, length = skb->len, here = (void *)(long)skb->data_end - (void *)(long)skb->data, offset, copied;
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
	if (length > FFPF_LONGEST_FRAME - FFPF_TAG_BYTES)
		return -1; /* what is proved of a flow says nothing about such frames */
	if (is_tagged || (here < length && here < ffpf_tap.far_reach)) {
		__u8 *frame;

		offset = cpu * FFPF_FRAME_BYTES + FFPF_FRAME_START;
		frame = ffpf_frame + offset;
		if (is_tagged)
			length += FFPF_TAG_BYTES;
		copied = copy(skb, frame, ffpf_tap.reach > LEAST_COPIED ? ffpf_tap.reach : LEAST_COPIED, length);
		if (copied < length && copied < ffpf_tap.far_reach && is_extended(frame))
			copied = copy(skb, frame, ffpf_tap.far_reach, length);
		scratch[cpu].length = length;
		scratch[cpu].copied = copied;
	}
	bpf_tail_call(skb, &ffpf_links, FFPF_NEXT);
	return -1;
}
