/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * anonymise: headers with pseudonyms for addresses. Rewritten in the record, where it lies.
 */
#include "ring.h"
#include "headers.h"
#include "pseudonyms.h"

#define MOST_HEADER_BYTES 236
#define MOST_OPTION_WORDS 10
#define BROADCAST 0xffffffffffffull
#define NOPS 0x01010101

/* The place of `bytes` in the record from `offset` on, or null if it is shorter. */
INLINE void *at(struct record *record, __u64 offset, __u64 bytes)
{
	asm volatile("" : "+r"(offset));
	if (offset > SNAPLEN - bytes || offset + bytes > record->captured)
		return 0;
	return record->data + offset;
}

INLINE __u64 transport_bytes(const struct headers *headers)
{
	if (headers->fragment == 2)
		return 0;
	if (headers->protocol == IPPROTO_TCP)
		return 20;
	if (headers->protocol == IPPROTO_SCTP)
		return 12;
	return headers->protocol == IPPROTO_UDP ||
	       headers->protocol == (headers->version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6) ? 8 : 0;
}

/* Up to where a packet is understood. */
INLINE struct shape shape_of(void *data, void *end)
{
	struct headers headers = parse(data, end);
	__u64 length = end - data, ip_end = 0, shown = transport_bytes(&headers);
	struct shape shape = {.network = headers.network - data, .transport = headers.transport - data,
			      .version = headers.version, .protocol = headers.protocol};
	__u64 known = headers.protocol == IPPROTO_TCP ? sizeof(struct tcp) : shown;

	if (headers.version == 4)
		ip_end = shape.network + bpf_ntohs(((struct iphdr *)headers.network)->tot_len);
	else if (headers.version == 6 && (headers.fragment == 2 || !is_extension(headers.protocol)))
		ip_end = shape.network + 40 + bpf_ntohs(((struct ipv6hdr *)headers.network)->payload_len);
	if (ip_end > length)
		ip_end = length;
	shape.wanted = length < shape.network ? 0 : shape.network;
	if (!headers.version || ip_end < shape.transport || shape.transport > MOST_HEADER_BYTES)
		return shape;
	shape.wanted = shape.transport;
	if (shape.transport + shown <= ip_end && shape.transport + known <= length)
		shape.wanted += shown;
	return shape;
}

INLINE void rewrite_mac(struct memory *memory, __u16 *halves)
{
	__u64 mac = halves[0] | (__u64)halves[1] << 16 | (__u64)halves[2] << 32;

	if (mac == BROADCAST)
		return;
	mac = mac_shown(memory, mac);
	halves[0] = mac;
	halves[1] = mac >> 16;
	halves[2] = mac >> 32;
}

INLINE int rewrite_ip4(struct memory *memory, struct record *record, __u64 offset, __u64 transport)
{
	struct iphdr *ip = at(record, offset, sizeof(*ip));
	__u64 sum = 0;

	if (!ip)
		return 0;
	ip->saddr = bpf_htonl(ip4_shown(memory, bpf_ntohl(ip->saddr)));
	ip->daddr = bpf_htonl(ip4_shown(memory, bpf_ntohl(ip->daddr)));
	offset += sizeof(*ip);
#pragma clang loop unroll(disable)
	for (int word = 0; word < MOST_OPTION_WORDS && offset < transport; word++, offset += 4) {
		__u32 *option = at(record, offset, 4);

		if (!option)
			return 0;
		*option = NOPS;
		sum += 2 * (NOPS & 0xffff);
	}
	ip->check = 0;
#pragma unroll
	for (int half = 0; half < 10; half++)
		sum += ((__u16 *)ip)[half];
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~(sum + (sum >> 16));
	return 1;
}

/* Of extension headers, what comes next and the length stay; of a fragment header all. */
INLINE int rewrite_extensions(struct record *record, __u8 protocol, __u64 offset, __u64 transport)
{
#pragma clang loop unroll(disable)
	for (int number = 0; number < MOST_EXTENSIONS && offset < transport; number++) {
		struct extension *extension = at(record, offset, sizeof(*extension));
		__u64 bytes;

		if (!extension)
			return 0;
		bytes = protocol == IPPROTO_AH ? (extension->length + 2) * 4 :
			protocol == IPPROTO_FRAGMENT ? 8 : (extension->length + 1) * 8;
		if (protocol != IPPROTO_FRAGMENT) {
			extension->fragment = 0;
#pragma clang loop unroll(disable)
			for (__u64 word = 4; word < bytes; word += 4) {
				__u32 *cleared = at(record, offset + word, 4);

				if (!cleared)
					return 0;
				*cleared = 0;
			}
		}
		protocol = extension->following;
		offset += bytes;
	}
	return offset == transport;
}

INLINE int rewrite_ip6(struct memory *memory, struct record *record, __u64 offset, __u64 transport)
{
	struct ipv6hdr *ip = at(record, offset, sizeof(*ip));

	if (!ip)
		return 0;
#pragma clang loop unroll(disable)
	for (int address = 8; address < 40; address += 16) {
		__u64 *words = (void *)ip + address;
		struct known_ip6 *known = ip6_shown(memory, bpf_be64_to_cpu(words[0]), bpf_be64_to_cpu(words[1]));

		words[0] = bpf_cpu_to_be64(known->pseudonym_high);
		words[1] = bpf_cpu_to_be64(known->pseudonym_low);
	}
	return rewrite_extensions(record, ip->nexthdr, offset + sizeof(*ip), transport);
}

/* Without checksums; of ICMP type and code only. */
INLINE int rewrite_transport(struct record *record, const struct shape *shape)
{
	__u16 *header = at(record, shape->transport, 8), *checksum;

	if (!header)
		return 0;
	if (shape->protocol == IPPROTO_TCP) {
		checksum = at(record, shape->transport + 16, 2);
		if (!checksum)
			return 0;
		*checksum = 0;
	} else if (shape->protocol == IPPROTO_SCTP) {
		checksum = at(record, shape->transport + 8, 4);
		if (!checksum)
			return 0;
		checksum[0] = checksum[1] = 0;
	} else {
		header[3] = 0;
		if (shape->protocol != IPPROTO_UDP)
			header[1] = header[2] = 0;
	}
	return 1;
}

INLINE void rewrite(struct record *record, const struct shape *shape)
{
	struct memory *memory = this_memory();
	__u16 *ethernet = at(record, 0, sizeof(struct ethhdr));
	__u64 understood = 0;

	if (ethernet) {
		rewrite_mac(memory, ethernet);
		rewrite_mac(memory, ethernet + 3);
		understood = shape->network;
	}
	if (understood && shape->version && record->captured >= shape->transport &&
	    (shape->version == 4 ? rewrite_ip4(memory, record, shape->network, shape->transport) :
				   rewrite_ip6(memory, record, shape->network, shape->transport))) {
		understood = shape->transport;
		if (record->captured > understood && rewrite_transport(record, shape))
			return;
	}
	if (record->captured > understood)
		record->captured = understood;
}

GRABBER(shape_of, rewrite)
