/* SPDX-License-Identifier: GPL-2.0-only */
/* bytecount: mbuf: __u64, bytes on the wire of the packets seen on this CPU. */
#include "ffpf.h"

FFPF_PRIMITIVE int ffpf_bytecount(const struct ffpf_packet *packet, void *mbuf)
{
	*(__u64 *)mbuf += packet->length;
	return 1;
}
