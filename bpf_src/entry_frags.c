/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The program that is attached to a tap at XDP whose frames may lie in several buffers (xdp.frags): entry.c, and of a frame
 * whose first buffer is too short for what the chain looks at, that much in one piece in this CPU's ffpf_frame.
 */
#include "entry.h"
#include "reach.h"

SEC("xdp.frags/ffpf_entry") int ffpf_entry(struct xdp_md *ctx)
{
	struct ffpf_scratch *scratch;
	__u64 cpu, length, here = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	scratch = begin(&cpu);
	if (!scratch)
		return XDP_PASS;
	scratch->copied = 0;
	length = bpf_xdp_get_buff_len(ctx);
	if (length > FFPF_LONGEST_FRAME)
		return XDP_PASS;
	scratch->length = length;
	if (here < length && here < ffpf_tap.far_reach)
		scratch->copied = copy_reach(ctx, &ffpf_tap, cpu, length);
	bpf_tail_call(ctx, &ffpf_links, FFPF_NEXT);
	return XDP_PASS;
}
