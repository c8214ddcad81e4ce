/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * classify: by destination port: 80 is counted, of 443 the bytes, the rest is left out; with -DPARTS=N by flow, in N
 * parts, the first half counted, of the others the bytes.
 */
#include "node.h"
#include "flowhash.h"

INLINE void run(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct counts *counts = counts_if_active();
	int is_first, is_second;

	if (!counts)
		return;
	counts->seen++;
#ifdef PARTS
	is_first = (flow_hash(data, end, state.seed) >> 32) * PARTS >> 32 < PARTS / 2;
	is_second = !is_first;
#else
	{
		struct headers headers = parse(data, end);
		struct ports *ports = ports_in(&headers, end);

		is_first = ports && ports->dest == bpf_htons(80);
		is_second = ports && ports->dest == bpf_htons(443);
	}
#endif
	if (is_first) {
		counts->own[0]++;
	} else if (is_second) {
		counts->own[1]++;
		counts->own[2] += end - data;
	} else {
		counts->filtered++;
		return;
	}
	counts->passed++;
	counts->counted++;
}

FILTER(run)
