/* SPDX-License-Identifier: GPL-2.0-only */
/* histogram: packets by a value. mbuf: a __u64 for each bin; table: __u64, the time of the packet before. */
#include "ffpf.h"

/* Without a branch: the verifier would go 64 ways from here, and through all that follows on each of them. */
static __always_inline __u64 log2_bin(__u64 value)
{
	__u64 bin = 0, shift;

#pragma clang loop unroll(full)
	for (int bits = 32; bits; bits >>= 1) {
		shift = -(value >> bits) >> 63; /* 1 if anything is left */
		FFPF_OPAQUE(shift);
		shift *= bits;
		value >>= shift;
		bin += shift;
	}
	return bin + value;
}

/* width: of linear bins, 0 for powers of two. Both are constants where this is inlined. */
static __always_inline void count(void *mbuf, __u64 value, __u64 width, __u64 bins)
{
	__u64 bin = width ? value / width : log2_bin(value);

	FFPF_OPAQUE(bin);
	if (bin >= bins)
		bin = bins - 1;
	FFPF_OPAQUE(bin);
	if (bin < bins)
		((__u64 *)mbuf)[bin]++;
}

FFPF_PRIMITIVE int ffpf_histogram_size(const struct ffpf_packet *packet, void *mbuf, __u64 width, __u64 bins)
{
	count(mbuf, ffpf_length(packet), width, bins);
	return 1;
}

FFPF_PRIMITIVE int ffpf_histogram_iat(const struct ffpf_packet *packet, void *mbuf, void *last, __u64 width,
				      __u64 bins)
{
	__u64 now = ffpf_now_ns(packet), before = __sync_lock_test_and_set((__u64 *)last, now);

	if (before)
		count(mbuf, now > before ? now - before : 0, width, bins);
	return 1;
}
