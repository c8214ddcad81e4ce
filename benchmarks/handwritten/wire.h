/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the hand-written rivals share: headers as a C programmer reads them, one bounds check for each header.
 * Their verdicts are libpcap's on whole packets, IPv6 and fragments included: benchmarks/packet.py compares them.
 */
#ifndef WIRE_H
#define WIRE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define INLINE static __attribute__((always_inline, unused))

struct ports {
	__be16 source, dest;
};

struct arp {
	__be16 hardware, protocol;
	__u8 hardware_bytes, protocol_bytes;
	__be16 operation;
	__u8 sender_hardware[6];
	__be32 sender;
	__u8 target_hardware[6];
	__be32 target;
} __attribute__((packed));

/* The ports of a packet whose protocol is one of `wanted` (a bit for each of TCP 1, UDP 2, SCTP 4), or null. */
INLINE struct ports *ports_of(void *data, void *end, int wanted)
{
	struct ethhdr *ethernet = data;
	struct ports *ports;
	__u8 protocol;

	if ((void *)(ethernet + 1) > end)
		return 0;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end || ip->frag_off & bpf_htons(0x1fff))
			return 0;
		protocol = ip->protocol;
		ports = (void *)ip + ip->ihl * 4;
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return 0;
		protocol = ip->nexthdr;
		ports = (void *)(ip + 1);
	} else {
		return 0;
	}
	if (!((wanted & 1 && protocol == IPPROTO_TCP) || (wanted & 2 && protocol == IPPROTO_UDP) ||
	      (wanted & 4 && protocol == IPPROTO_SCTP)))
		return 0;
	return (void *)(ports + 1) > end ? 0 : ports;
}

/* Source or target, or sender or target of an ARP or RARP packet, is in a network. */
INLINE int in_network(void *data, void *end, __be32 network, __be32 mask)
{
	struct ethhdr *ethernet = data;

	if ((void *)(ethernet + 1) > end)
		return 0;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return 0;
		return (ip->saddr & mask) == network || (ip->daddr & mask) == network;
	}
	if (ethernet->h_proto == bpf_htons(ETH_P_ARP) || ethernet->h_proto == bpf_htons(ETH_P_RARP)) {
		struct arp *arp = (void *)(ethernet + 1);

		if ((void *)(arp + 1) > end)
			return 0;
		return (arp->sender & mask) == network || (arp->target & mask) == network;
	}
	return 0;
}

INLINE int has_port(void *data, void *end, int wanted, __u16 port)
{
	struct ports *ports = ports_of(data, end, wanted);

	return ports && (ports->source == bpf_htons(port) || ports->dest == bpf_htons(port));
}

/*
 * The filter `matches(data, end)` as a bare program, run TIMES times over, each time as if for the first time; or, with
 * -DWITH_DUTIES, as a program that counts like a flow.
 */
#ifndef TIMES
#define TIMES 1
#endif
#ifndef WITH_DUTIES
#define PROGRAM(matches)                                                                                  \
	SEC("xdp/filter") int filter(struct xdp_md *ctx)                                                  \
	{                                                                                                 \
		__u64 start = ctx->data, stop = ctx->data_end;                                            \
		__u64 passed = 0;                                                                          \
		_Pragma("unroll") for (int time = 0; time < TIMES; time++)                                \
		{                                                                                         \
			asm volatile("" : "+r"(start), "+r"(stop));                                       \
			passed = !!matches((void *)start, (void *)stop);                                  \
			asm volatile("" : "+r"(passed));                                                  \
		}                                                                                         \
		return passed ? XDP_PASS : XDP_DROP;                                                      \
	}
#else
#define CPUS 128
struct counts {
	__u64 seen, passed, counted, filtered;
	__u64 own[4]; /* what a node class counts or remembers besides */
};
struct state {
	__u32 active, toggle;
	__u64 seed; /* of the hashes of flows */
	__u64 unused[6];
	struct counts cpus[CPUS];
};
extern struct state state;

/* This CPU's counters, or null if the flow is switched off. */
INLINE struct counts *counts_if_active(void)
{
	__u64 cpu;

#ifndef CHAINED /* the chain's entry program has asked */
	if (!*(volatile __u32 *)&state.active)
		return 0;
#endif
	if (!*(volatile __u32 *)&state.toggle)
		return 0;
	cpu = bpf_get_smp_processor_id();
	asm volatile("" : "+r"(cpu));
	return cpu < CPUS ? &state.cpus[cpu] : 0;
}

/* The program that runs `run(ctx)`, and with -DCHAINED goes on to what follows it in a chain. */
#ifdef CHAINED
extern void links; /* BPF_MAP_TYPE_PROG_ARRAY */
#define GO_ON(ctx) bpf_tail_call(ctx, &links, 0)
#else
#define GO_ON(ctx)
#endif
#define FILTER(run)                                                                                       \
	SEC("xdp/filter") int filter(struct xdp_md *ctx)                                                  \
	{                                                                                                 \
		run(ctx);                                                                                 \
		GO_ON(ctx);                                                                               \
		return XDP_PASS;                                                                          \
	}

#define PROGRAM(matches)                                                                                  \
	INLINE void run(struct xdp_md *ctx)                                                               \
	{                                                                                                 \
		void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;                 \
		struct counts *counts = counts_if_active();                                               \
		if (!counts)                                                                              \
			return;                                                                           \
		counts->seen++;                                                                           \
		if (matches(data, end)) {                                                                 \
			counts->passed++;                                                                 \
			counts->counted++;                                                                \
		} else {                                                                                  \
			counts->filtered++;                                                               \
		}                                                                                         \
	}                                                                                                 \
	FILTER(run)
#endif

#endif
