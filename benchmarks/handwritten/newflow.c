/* SPDX-License-Identifier: GPL-2.0-only */
/* newflow: the first packet of each flow. */
#define MOST 1
#include "head.c"
