/* SPDX-License-Identifier: GPL-2.0-only */
/* head: the first so many packets or bytes of each flow. mbuf: struct counts; table: buckets of flows. */
#include "flowtable.h"

struct counts {
	__u64 flows;
	__u64 evicted;
};

FFPF_PRIMITIVE int ffpf_head(const struct ffpf_packet *packet, void *mbuf, void *table, __u64 buckets, __u64 most,
			     __u64 by_bytes)
{
	struct counts *counts = mbuf;
	struct ffpf_place place = ffpf_flow_place(table, buckets, ffpf_flow_hash(packet));

	if (place.is_new) {
		counts->flows++;
		counts->evicted += place.evicted;
	}
	return ffpf_flow_add(place.used, most, by_bytes ? packet->length : 1);
}
