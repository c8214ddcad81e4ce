/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Headers as the node classes understand them: up to two VLAN tags, IPv4 with options, IPv6 with extension headers,
 * fragments. Inlined, so that each program works out only what it uses.
 */
#ifndef HEADERS_H
#define HEADERS_H

#include "wire.h"

#define MOST_TAGS 2
#define MOST_EXTENSIONS 8

struct vlan {
	__be16 id, following;
};

struct extension {
	__u8 following, length;
	__be16 fragment;
	__u8 unused[4];
};

struct tcp {
	struct ports ports;
	__be32 sequence, acknowledged;
	__u8 offset, flags;
	__be16 window, checksum, urgent;
};

struct headers {
	__be16 ethertype;
	__u8 version;    /* 4, 6, or 0: not IP */
	__u8 protocol;
	__u8 fragment;   /* 0: none, 1: the first one, 2: a later one */
	void *network;
	void *transport;
};

INLINE int is_tag(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD) ||
	       ethertype == bpf_htons(0x9100);
}

INLINE int is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_MH || protocol == IPPROTO_AH || protocol == IPPROTO_FRAGMENT;
}

INLINE void parse_ip4(struct iphdr *ip, void *end, struct headers *headers)
{
	__be16 fragment;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return;
	fragment = ip->frag_off & bpf_htons(0x3fff);
	headers->version = 4;
	headers->protocol = ip->protocol;
	headers->fragment = !fragment ? 0 : fragment & bpf_htons(0x1fff) ? 2 : 1;
	headers->transport = (void *)ip + ip->ihl * 4;
}

INLINE void parse_ip6(struct ipv6hdr *ip, void *end, struct headers *headers)
{
	struct extension *extension = (void *)(ip + 1);
	__u8 protocol;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return;
	headers->version = 6;
	protocol = ip->nexthdr;
#pragma unroll
	for (int number = 0; number < MOST_EXTENSIONS; number++) {
		__u32 bytes;

		if (!is_extension(protocol) || (void *)(extension + 1) > end || headers->fragment == 2)
			break;
		bytes = protocol == IPPROTO_AH ? (extension->length + 2) * 4 : (extension->length + 1) * 8;
		if (protocol == IPPROTO_FRAGMENT) {
			bytes = 8;
			headers->fragment = extension->fragment & bpf_htons(0xfff8) ? 2 :
					    extension->fragment & bpf_htons(1) ? 1 : 0;
		}
		protocol = extension->following;
		extension = (void *)extension + bytes;
	}
	headers->protocol = protocol;
	headers->transport = extension;
}

INLINE struct headers parse(void *data, void *end)
{
	struct headers headers = {.network = data, .transport = data};
	struct ethhdr *ethernet = data;
	struct vlan *tag = (void *)(ethernet + 1);

	if ((void *)(ethernet + 1) > end)
		return headers;
	headers.ethertype = ethernet->h_proto;
#pragma unroll
	for (int number = 0; number < MOST_TAGS; number++) {
		if (!is_tag(headers.ethertype) || (void *)(tag + 1) > end)
			break;
		headers.ethertype = tag->following;
		tag++;
	}
	headers.network = headers.transport = tag;
	if (headers.ethertype == bpf_htons(ETH_P_IP))
		parse_ip4(headers.network, end, &headers);
	else if (headers.ethertype == bpf_htons(ETH_P_IPV6))
		parse_ip6(headers.network, end, &headers);
	return headers;
}

/* The ports of TCP, UDP and SCTP, or null. */
INLINE struct ports *ports_in(const struct headers *headers, void *end)
{
	struct ports *ports = headers->transport;

	if (!headers->version || headers->fragment == 2)
		return 0;
	if (headers->protocol != IPPROTO_TCP && headers->protocol != IPPROTO_UDP && headers->protocol != IPPROTO_SCTP)
		return 0;
	return (void *)(ports + 1) > end ? 0 : ports;
}

/* The TCP header, or null. */
INLINE struct tcp *tcp_in(const struct headers *headers, void *end)
{
	struct tcp *tcp = headers->transport;

	if (!headers->version || headers->fragment == 2 || headers->protocol != IPPROTO_TCP)
		return 0;
	return (void *)(tcp + 1) > end ? 0 : tcp;
}

/* Where the payload begins: behind the transport header, at the end if that is cut. */
INLINE __u64 payload_in(const struct headers *headers, void *data, void *end)
{
	__u64 length = end - data, at = headers->transport - data;
	struct tcp *tcp = headers->transport;

	if (headers->version && headers->fragment != 2) {
		if (headers->protocol == IPPROTO_TCP)
			at = (void *)(tcp + 1) > end ? length : at + (tcp->offset >> 4) * 4;
		else if (headers->protocol == IPPROTO_UDP || headers->protocol == IPPROTO_ICMP ||
			 headers->protocol == IPPROTO_ICMPV6)
			at += 8;
		else if (headers->protocol == IPPROTO_SCTP)
			at += 12;
	}
	return at < length ? at : length;
}

#endif
