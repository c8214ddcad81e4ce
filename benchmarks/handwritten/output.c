/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * grab as it is usually written: time, length and the first SNAPLEN bytes, by bpf_ringbuf_output(), or with -DPERF by
 * bpf_perf_event_output(), which takes the bytes from the packet itself. Wakes nobody, counts nothing.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern void records;

struct record {
	__u64 time_ns;
	__u32 captured, original;
	__u8 data[SNAPLEN];
};

SEC("xdp/filter") int filter(struct xdp_md *ctx)
{
	__u64 original = (void *)(long)ctx->data_end - (void *)(long)ctx->data, wanted = original;
	struct record record;

	asm volatile("" : "+r"(wanted));
	if (wanted > SNAPLEN)
		wanted = SNAPLEN;
	asm volatile("" : "+r"(wanted));
	record.time_ns = bpf_ktime_get_ns();
	record.captured = wanted;
	record.original = original;
#ifdef PERF
	bpf_perf_event_output(ctx, &records, BPF_F_CURRENT_CPU | wanted << 32, &record, sizeof(record) - SNAPLEN);
#else
	if (wanted < 1 || bpf_xdp_load_bytes(ctx, 0, record.data, wanted))
		return XDP_PASS;
	bpf_ringbuf_output(&records, &record, sizeof(record) - SNAPLEN + wanted, BPF_RB_NO_WAKEUP);
#endif
	return XDP_PASS;
}
