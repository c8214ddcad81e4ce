/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Of a frame that programs cannot read where it lies, the entry program copies as much as the chain looks at to this CPU's
 * ffpf_frame: by ffpf_load_frame(), with which the deliver program copies as well.
 */
#ifndef FFPF_REACH_H
#define FFPF_REACH_H

#include "dissect.h"

#define LEAST_COPIED 64 /* up to the type behind two tags, and the next header of an IPv6 header behind that */
#define TAG_BYTES 4

extern __u8 ffpf_frame[];

/* Copies `bytes` of the frame, as many as it has and fit; how many, or 0. */
static __always_inline __u64 copy_frame(void *ctx, __u8 *frame, __u64 bytes, __u64 length)
{
	if (bytes > length)
		bytes = length;
	FFPF_OPAQUE(bytes);
	if (ffpf_is_none(bytes) || bytes > FFPF_LONGEST_REACH)
		return 0;
	return ffpf_load_frame(ctx, frame, bytes, FFPF_LONGEST_REACH) ? 0 : bytes;
}

/* Whether a frame, of which LEAST_COPIED bytes are here, is IPv6 with an extension header, or may be. */
static __always_inline int is_extended(const __u8 *frame)
{
	__u64 at = 12;
	__u16 type = ffpf_be16(frame + at);
	__u8 next;

#pragma clang loop unroll(full)
	for (int tag = 0; tag < 2; tag++) {
		if (type == 0x8100 || type == 0x88a8 || type == 0x9100)
			at += TAG_BYTES;
		FFPF_OPAQUE(at);
		at &= 31;
		type = ffpf_be16(frame + at);
	}
	next = frame[at + 8];
	return type == 0x86dd && next != FFPF_TCP && next != FFPF_UDP && next != FFPF_ICMP6;
}

/* Copies what the chain looks at of a frame that is `length` bytes long on the wire, to that CPU's; how many bytes. */
static __always_inline __u64 copy_reach(void *ctx, const struct ffpf_tap *tap, __u64 cpu, __u64 length)
{
	__u8 *frame = ffpf_frame + cpu * FFPF_FRAME_BYTES + FFPF_FRAME_START;
	__u64 copied = copy_frame(ctx, frame, tap->reach > LEAST_COPIED ? tap->reach : LEAST_COPIED, length);

	if (copied < length && copied < tap->far_reach && is_extended(frame))
		copied = copy_frame(ctx, frame, tap->far_reach, length);
	return copied;
}

#endif
