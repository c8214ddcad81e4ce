/* SPDX-License-Identifier: GPL-2.0-only */
/* packetcount: once more than the program counts anyway; with -DNOTHING only that. */
#include "node.h"

INLINE int passes(struct packet *packet)
{
#ifndef NOTHING
	packet->counts->own[0]++;
#endif
	return 1;
}

NODE(passes)
