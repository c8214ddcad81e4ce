/* SPDX-License-Identifier: GPL-2.0-only */
/* How programs at tc copy a frame. */
#include "tc.h"

FFPF_PRIMITIVE __s64 ffpf_load_frame(void *ctx, void *to, __u64 wanted, __u64 longest)
{
	struct __sk_buff *skb = ctx;

	if (skb->vlan_present)
		return ffpf_load_tagged(skb, to, wanted, longest);
	return bpf_skb_load_bytes(skb, 0, to, wanted);
}
