/* SPDX-License-Identifier: GPL-2.0-only */
/* tcpflags: TCP segments by their flags. mbuf: none. */
#include "dissect.h"

/* packed: 16 bits for each way, the flags that matter in the upper byte, those of them that are set in the lower. */
FFPF_PRIMITIVE int ffpf_tcpflags(const struct ffpf_packet *packet, void *mbuf, __u64 ways, __u64 packed)
{
	struct ffpf_headers headers = ffpf_headers(packet);
	__u64 flags = headers.tcp_flags;

	if (!headers.tcp)
		return 0;
#pragma clang loop unroll(full)
	for (__u64 way = 0; way < 4; way++) {
		if (way < ways && (flags & (packed >> (16 * way + 8) & 0xff)) == (packed >> 16 * way & 0xff))
			return 1;
	}
	return 0;
}
