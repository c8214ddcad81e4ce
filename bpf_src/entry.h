/* SPDX-License-Identifier: GPL-2.0-only */
/* What the programs that are attached to a tap have in common. */
#ifndef FFPF_ENTRY_H
#define FFPF_ENTRY_H

#include "ffpf.h"

extern struct ffpf_tap ffpf_tap;
extern void ffpf_links;
extern const __u32 ffpf_cpus;

/* A packet enters, if a flow is switched on and the CPU is known: this CPU's scratch memory, or 0. `cpu` is its number. */
static __always_inline struct ffpf_scratch *begin(__u64 *cpu)
{
	struct ffpf_scratch *scratch = (struct ffpf_scratch *)(&ffpf_tap + 1);
	__u64 here;

	if (!*(volatile __u32 *)&ffpf_tap.active)
		return 0;
	here = bpf_get_smp_processor_id();
	FFPF_OPAQUE(here);
	if (here >= ffpf_cpus)
		return 0;
	*cpu = here;
	ffpf_enter(&scratch[here]);
	return &scratch[here];
}

#endif
