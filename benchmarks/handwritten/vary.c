/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Makes a packet another one each time, of FLOWS (a power of two), by the 32 bits at OFFSET, and goes on to the program
 * that is measured.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern __u32 counter;
extern void target; /* BPF_MAP_TYPE_PROG_ARRAY */

SEC("xdp/vary") int vary(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	__u32 number = counter++ & (FLOWS - 1);

	if (data + OFFSET + 4 > (void *)(long)ctx->data_end)
		return XDP_DROP;
	*(__u32 *)(data + OFFSET) = __builtin_bswap32(BASE + number);
	bpf_tail_call(ctx, &target, 0);
	return XDP_DROP;
}
