/* SPDX-License-Identifier: GPL-2.0-only */
/* How programs at XDP copy a frame where the kernel has no bpf_xdp_load_bytes (before 5.18): there every frame is in
 * one piece, and is read where it lies. */
#include "ffpf.h"

/* Copies `bytes` of the packet, if that many are left to copy; what is left then. */
#define FFPF_PIECE(type)                                                                                              \
	do {                                                                                                          \
		FFPF_OPAQUE(from);                                                                                    \
		if (from + sizeof(type) > end)                                                                        \
			return -1;                                                                                    \
		*(type *)to = *(const type *)from;                                                                    \
		from += sizeof(type);                                                                                 \
		to += sizeof(type);                                                                                   \
		left -= sizeof(type);                                                                                 \
		FFPF_OPAQUE(left);                                                                                    \
	} while (0)

FFPF_PRIMITIVE __s64 ffpf_load_frame(void *ctx, void *to, __u64 wanted, __u64 longest)
{
	const struct xdp_md *frame = ctx;
	void *from = (void *)(long)frame->data, *end = (void *)(long)frame->data_end;
	__u64 left = wanted;

	FFPF_OPAQUE(end);
	FFPF_OPAQUE(left);
#pragma clang loop unroll(disable)
	for (__u64 at = 0; at + 8 <= longest && left >= 8; at += 8)
		FFPF_PIECE(__u64);
	if (left >= 4)
		FFPF_PIECE(__u32);
	if (left >= 2)
		FFPF_PIECE(__u16);
	if (left >= 1)
		FFPF_PIECE(__u8);
	return 0;
}
