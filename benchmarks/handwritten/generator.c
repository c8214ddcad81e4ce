/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sends the template, with another UDP source port each time, out of an interface: run on live frames by
 * BPF_PROG_TEST_RUN. Pages are used again after whoever got them before, so each byte is written anew.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct generator {
	__u32 interface, sent;
	__u64 reserved[7];
	__u64 template[8]; /* the first 64 bytes */
};
extern struct generator generator;

SEC("xdp/generate") int generate(struct xdp_md *ctx)
{
	__u64 *data = (void *)(long)ctx->data;

	if ((void *)(data + 8) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	for (int word = 0; word < 8; word++)
		data[word] = generator.template[word];
	((__u16 *)data)[17] = ++generator.sent; /* UDP source port */
	return bpf_redirect(generator.interface, 0);
}
