/* SPDX-License-Identifier: GPL-2.0-only */
/* bytecount */
#include "node.h"

INLINE int passes(struct packet *packet)
{
	packet->counts->own[0] += length_of(packet);
	return 1;
}

NODE(passes)
