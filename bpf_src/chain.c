/* SPDX-License-Identifier: GPL-2.0-only */
/* What generated programs need of the chain: the CPU they run on, and the way to the program that follows. */
#include "ffpf.h"

FFPF_PRIMITIVE __u64 ffpf_this_cpu(void)
{
	return bpf_get_smp_processor_id();
}

/* Returns only if the slot is empty. `link` must be a constant: a tail call by a variable costs ten times as much. */
FFPF_PRIMITIVE void ffpf_follow(void *ctx, void *links, __u32 link)
{
	bpf_tail_call(ctx, links, link);
}
