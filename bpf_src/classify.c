/* SPDX-License-Identifier: GPL-2.0-only */
/* classify: a field of the packet as the node's result. mbuf: none. */
#include "dissect.h"

enum field { DPORT, SPORT, PROTO, ETHERTYPE, VLAN, VERSION, DSCP, TTL, TCPFLAGS, LENGTH, FLOW };

/* `field` is a constant where this is inlined. */
FFPF_PRIMITIVE int ffpf_classify(const struct ffpf_packet *packet, void *mbuf, __u64 field, __u64 parts)
{
	struct ffpf_headers headers;
	__u64 length;

	if (field == LENGTH) {
		length = ffpf_length(packet);
		return length < FFPF_NO_RESULT ? length : FFPF_NO_RESULT - 1;
	}
	if (field == FLOW)
		return (ffpf_flow_hash(packet) >> 32) * parts >> 32;
	headers = ffpf_headers(packet);
	if (field == ETHERTYPE)
		return headers.ethertype;
	if (field == VLAN)
		return headers.vlan == FFPF_NO_VLAN ? FFPF_NO_RESULT : headers.vlan;
	if (field == DPORT || field == SPORT)
		return !headers.ports ? FFPF_NO_RESULT : field == DPORT ? headers.dport : headers.sport;
	if (field == TCPFLAGS)
		return headers.tcp ? headers.tcp_flags : FFPF_NO_RESULT;
	if (!headers.version)
		return FFPF_NO_RESULT;
	if (field == PROTO)
		return headers.protocol;
	if (field == VERSION)
		return headers.version;
	return field == DSCP ? headers.traffic >> 2 : headers.ttl;
}
