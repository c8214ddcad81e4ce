/* SPDX-License-Identifier: GPL-2.0-only */
/* A rival of a node class: a program that asks `passes(packet)` and counts like a flow of that node and a counter. */
#ifndef NODE_H
#define NODE_H

#ifndef WITH_DUTIES
#define WITH_DUTIES
#endif
#include "wire.h"

struct packet {
	struct xdp_md *ctx;
	void *data, *end;
	struct counts *counts; /* this CPU's */
};

INLINE __u64 length_of(const struct packet *packet)
{
	return packet->end - packet->data;
}

#define NODE(passes)                                                                                      \
	INLINE void run(struct xdp_md *ctx)                                                               \
	{                                                                                                 \
		struct packet packet = {ctx, (void *)(long)ctx->data, (void *)(long)ctx->data_end,        \
					counts_if_active()};                                              \
		if (!packet.counts)                                                                       \
			return;                                                                           \
		packet.counts->seen++;                                                                    \
		if (passes(&packet)) {                                                                    \
			packet.counts->passed++;                                                          \
			packet.counts->counted++;                                                         \
		} else {                                                                                  \
			packet.counts->filtered++;                                                        \
		}                                                                                         \
	}                                                                                                 \
	FILTER(run)

#endif
