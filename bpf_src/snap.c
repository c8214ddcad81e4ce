/* SPDX-License-Identifier: GPL-2.0-only */
/* snap: of the copy, the headers and so many bytes of payload. mbuf: none. */
#include "dissect.h"

FFPF_PRIMITIVE __u64 ffpf_snap_keep(const struct ffpf_packet *packet, void *mbuf, __u64 payload)
{
	return ffpf_headers(packet).payload + payload;
}
