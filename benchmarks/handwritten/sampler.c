/* SPDX-License-Identifier: GPL-2.0-only */
/* sampler: -DONE_IN=N every N-th packet of this CPU, -DTHRESHOLD=T at random, -DFLOWS=T by the hash; T out of 2^32. */
#include "node.h"
#include "flowhash.h"

INLINE int passes(struct packet *packet)
{
#if defined(ONE_IN)
	__u64 *left_out = packet->counts->own;

	if (*left_out) {
		--*left_out;
		return 0;
	}
	*left_out = ONE_IN - 1;
	return 1;
#elif defined(THRESHOLD)
	return bpf_get_prandom_u32() < THRESHOLD;
#else
	return flow_hash(packet->data, packet->end, state.seed) >> 32 < FLOWS;
#endif
}

NODE(passes)
