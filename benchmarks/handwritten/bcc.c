/* What a bcc user writes for `tcp port PORT`; of the headers only what compiles fast. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>

#define IPPROTO_TCP 6 /* <uapi/linux/in.h> would double the time to compile */

struct ports {
	u16 source, dest;
};

BPF_ARRAY(packets, u64, 1);

int filter(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct ports *ports;
	u64 *count;
	u8 protocol;
	int zero = 0;

	if ((void *)(ethernet + 1) > end)
		return XDP_PASS;
	if (ethernet->h_proto == htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end || ip->frag_off & htons(0x1fff))
			return XDP_PASS;
		protocol = ip->protocol;
		ports = (void *)ip + ip->ihl * 4;
	} else if (ethernet->h_proto == htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		protocol = ip->nexthdr;
		ports = (void *)(ip + 1);
	} else {
		return XDP_PASS;
	}
	if (protocol != IPPROTO_TCP || (void *)(ports + 1) > end)
		return XDP_PASS;
	if (ports->source == htons(PORT) || ports->dest == htons(PORT)) {
		count = packets.lookup(&zero);
		if (count)
			lock_xadd(count, 1);
	}
	return XDP_PASS;
}
