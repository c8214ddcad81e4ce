/* SPDX-License-Identifier: GPL-2.0-only */
/* The program that is attached to a tap: reads one word, and enters the chain if a flow is switched on. */
#include "entry.h"

SEC("xdp/ffpf_entry") int ffpf_entry(struct xdp_md *ctx)
{
	__u64 cpu, length = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	if (begin(&cpu) && length <= FFPF_LONGEST_FRAME)
		bpf_tail_call(ctx, &ffpf_links, FFPF_NEXT);
	return XDP_PASS;
}
