/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * histogram: of sizes, or with -DIAT of the nanoseconds since the packet before; in powers of two, or with -DWIDTH=W
 * in bins of that width. The log2 is the one of bcc's examples and of the kernel's samples.
 */
#include "node.h"

#ifndef BINS
#define BINS 65
#endif
extern void bins; /* BPF_MAP_TYPE_PERCPU_ARRAY of __u64 */
#ifdef IAT
extern __u64 last;
#endif

INLINE __u32 log2_of_word(__u32 v)
{
	__u32 shift, r;

	r = (v > 0xffff) << 4;
	v >>= r;
	shift = (v > 0xff) << 3;
	v >>= shift;
	r |= shift;
	shift = (v > 0xf) << 2;
	v >>= shift;
	r |= shift;
	shift = (v > 0x3) << 1;
	v >>= shift;
	r |= shift;
	return r | v >> 1;
}

INLINE __u32 bin_of(__u64 value)
{
#ifdef WIDTH
	return value / WIDTH < BINS ? value / WIDTH : BINS - 1;
#else
	if (value >> 32)
		return log2_of_word(value >> 32) + 33;
	return value ? log2_of_word(value) + 1 : 0;
#endif
}

INLINE int passes(struct packet *packet)
{
	__u64 value, *count;
	__u32 bin;

#ifdef IAT
	__u64 now = bpf_ktime_get_ns(), before = __sync_lock_test_and_set(&last, now);

	if (!before)
		return 1;
	value = now > before ? now - before : 0;
#else
	value = length_of(packet);
#endif
	bin = bin_of(value);
	count = bpf_map_lookup_elem(&bins, &bin);
	if (count)
		++*count;
	return 1;
}

NODE(passes)
