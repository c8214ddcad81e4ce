/* SPDX-License-Identifier: GPL-2.0-only */
/* How programs at XDP copy a frame. */
#include "ffpf.h"

FFPF_PRIMITIVE __s64 ffpf_load_frame(void *ctx, void *to, __u64 wanted, __u64 longest)
{
	return bpf_xdp_load_bytes(ctx, 0, to, wanted);
}
