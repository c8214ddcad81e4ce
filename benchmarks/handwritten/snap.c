/* SPDX-License-Identifier: GPL-2.0-only */
/* snap: headers and PAYLOAD bytes. */
#include "ring.h"
#include "headers.h"

INLINE struct shape shape_of(void *data, void *end)
{
	struct headers headers = parse(data, end);
	__u64 length = end - data, shown = headers.transport - data;
	struct tcp *tcp = headers.transport;

	if (headers.version && headers.fragment != 2) {
		if (headers.protocol == IPPROTO_TCP)
			shown = (void *)(tcp + 1) > end ? length : shown + (tcp->offset >> 4) * 4;
		else if (headers.protocol == IPPROTO_UDP || headers.protocol == IPPROTO_ICMP ||
			 headers.protocol == IPPROTO_ICMPV6)
			shown += 8;
		else if (headers.protocol == IPPROTO_SCTP)
			shown += 12;
	}
	shown = (shown < length ? shown : length) + PAYLOAD;
	return (struct shape){.wanted = shown < length ? shown : length};
}

GRABBER(shape_of, as_it_is)
