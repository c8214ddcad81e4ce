/* SPDX-License-Identifier: GPL-2.0-only */
/* packetcount: mbuf: __u64, packets seen on this CPU. */
#include "ffpf.h"

FFPF_PRIMITIVE int ffpf_packetcount(const struct ffpf_packet *packet, void *mbuf)
{
	*(__u64 *)mbuf += 1;
	return 1;
}
