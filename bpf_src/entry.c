/* SPDX-License-Identifier: GPL-2.0-only */
/* The program that is attached to a tap: reads one word, and enters the chain if a flow is switched on. */
#include "ffpf.h"

extern struct ffpf_tap ffpf_tap;
extern void ffpf_links;
extern const __u32 ffpf_cpus;

SEC("xdp/ffpf_entry") int ffpf_entry(struct xdp_md *ctx)
{
	struct ffpf_scratch *scratch = (struct ffpf_scratch *)(&ffpf_tap + 1);
	__u64 cpu;

	if (!*(volatile __u32 *)&ffpf_tap.active)
		return XDP_PASS;
	cpu = bpf_get_smp_processor_id();
	FFPF_OPAQUE(cpu);
	if (cpu >= ffpf_cpus)
		return XDP_PASS;
	ffpf_enter(&scratch[cpu]);
	bpf_tail_call(ctx, &ffpf_links, FFPF_NEXT);
	return XDP_PASS;
}
