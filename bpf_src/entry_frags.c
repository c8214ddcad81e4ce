/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The program that is attached to a tap at XDP whose frames may lie in several buffers (xdp.frags): entry.c, and of a frame
 * whose first buffer is too short for what the chain looks at, that much in one piece in this CPU's ffpf_frame.
 */
#include "reach.h"

extern struct ffpf_tap ffpf_tap;
extern __u8 ffpf_frame[];
extern void ffpf_links;
extern const __u32 ffpf_cpus;

SEC("xdp.frags/ffpf_entry") int ffpf_entry(struct xdp_md *ctx)
{
	struct ffpf_scratch *scratch = (struct ffpf_scratch *)(&ffpf_tap + 1);
	__u64 cpu, length, here = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	if (!*(volatile __u32 *)&ffpf_tap.active)
		return XDP_PASS;
	cpu = bpf_get_smp_processor_id();
	FFPF_OPAQUE(cpu);
	if (cpu >= ffpf_cpus)
		return XDP_PASS;
	ffpf_enter(&scratch[cpu]);
	scratch[cpu].copied = 0;
	length = bpf_xdp_get_buff_len(ctx);
	if (length > FFPF_LONGEST_FRAME)
		return XDP_PASS; /* what is proved of a flow says nothing about such frames */
	scratch[cpu].length = length;
	if (here < length && here < ffpf_tap.far_reach)
		scratch[cpu].copied =
			copy_reach(ctx, &ffpf_tap, ffpf_frame + cpu * FFPF_FRAME_BYTES + FFPF_FRAME_START, length);
	bpf_tail_call(ctx, &ffpf_links, FFPF_NEXT);
	return XDP_PASS;
}
