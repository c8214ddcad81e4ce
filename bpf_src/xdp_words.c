/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How programs at XDP copy a frame where the kernel has no bpf_xdp_load_bytes (before 5.18): there every frame is in one
 * piece, and is read where it lies, 64 bytes for one look at its end, since the verifier walks every turn of the loop and
 * keeps no more than 8,192 ways that are still to go.
 */
#include "ffpf.h"

#define FFPF_BLOCK_BYTES 64

/* Copies a piece of the packet; those who say so have looked where it ends. */
#define FFPF_PIECE(type)                                                                                               \
	do {                                                                                                           \
		*(type *)to = *(const type *)from;                                                                     \
		from += sizeof(type);                                                                                  \
		to += sizeof(type);                                                                                    \
	} while (0)

/* Takes `bytes` from what is left to copy, if the packet has as many; otherwise ends with -1. */
#define FFPF_TAKE(bytes)                                                                                               \
	do {                                                                                                           \
		FFPF_OPAQUE(from);                                                                                     \
		if (from + (bytes) > end)                                                                              \
			return -1;                                                                                     \
		left -= (bytes);                                                                                       \
		FFPF_OPAQUE(left);                                                                                     \
	} while (0)

FFPF_PRIMITIVE __s64 ffpf_load_frame(void *ctx, void *to, __u64 wanted, __u64 longest)
{
	const struct xdp_md *frame = ctx;
	void *from = (void *)(long)frame->data, *end = (void *)(long)frame->data_end;
	__u64 left = wanted, at = 0;

	FFPF_OPAQUE(end);
	FFPF_OPAQUE(left);
#pragma clang loop unroll(disable)
	for (; at + FFPF_BLOCK_BYTES <= longest && left >= FFPF_BLOCK_BYTES; at += FFPF_BLOCK_BYTES) {
		FFPF_TAKE(FFPF_BLOCK_BYTES);
#pragma clang loop unroll(full)
		for (int word = 0; word < FFPF_BLOCK_BYTES / 8; word++)
			FFPF_PIECE(__u64);
	}
#pragma clang loop unroll(disable)
	for (int word = 1; word < FFPF_BLOCK_BYTES / 8 && left >= 8; word++) {
		FFPF_TAKE(8);
		FFPF_PIECE(__u64);
	}
	if (left >= 4) {
		FFPF_TAKE(4);
		FFPF_PIECE(__u32);
	}
	if (left >= 2) {
		FFPF_TAKE(2);
		FFPF_PIECE(__u16);
	}
	if (left >= 1) {
		FFPF_TAKE(1);
		FFPF_PIECE(__u8);
	}
	return 0;
}
