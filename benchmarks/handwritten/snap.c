/* SPDX-License-Identifier: GPL-2.0-only */
/* snap: headers and PAYLOAD bytes. */
#include "ring.h"
#include "headers.h"

INLINE struct shape shape_of(void *data, void *end)
{
	struct headers headers = parse(data, end);
	__u64 length = end - data, shown = payload_in(&headers, data, end) + PAYLOAD;

	return (struct shape){.wanted = shown < length ? shown : length};
}

GRABBER(shape_of, as_it_is)
