/* SPDX-License-Identifier: GPL-2.0-only */
/* tcpflags: "syn !ack | rst" */
#include "node.h"
#include "headers.h"

#define SYN 0x02
#define RST 0x04
#define ACK 0x10

INLINE int passes(struct packet *packet)
{
	struct headers headers = parse(packet->data, packet->end);
	struct tcp *tcp = tcp_in(&headers, packet->end);

	return tcp && ((tcp->flags & (SYN | ACK)) == SYN || tcp->flags & RST);
}

NODE(passes)
