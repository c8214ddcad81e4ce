/* SPDX-License-Identifier: GPL-2.0-only */
/* tcp port 80 */
#include "wire.h"

INLINE int matches(void *data, void *end)
{
	return has_port(data, end, 1, 80);
}

PROGRAM(matches)
