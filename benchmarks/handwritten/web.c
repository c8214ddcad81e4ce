/* SPDX-License-Identifier: GPL-2.0-only */
/* port 443 or port 80 */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	struct ports *ports = ports_of(data, end, 7);

	return ports && (ports->source == bpf_htons(443) || ports->source == bpf_htons(80) ||
			 ports->dest == bpf_htons(443) || ports->dest == bpf_htons(80));
}

PROGRAM(matches)
