/* SPDX-License-Identifier: GPL-2.0-only */
/* udp port 53 */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	return has_port(data, end, 2, 53);
}

PROGRAM(matches)
