/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every layout that the kernel side shares with Python, and what a primitive may use.
 *
 * The numpy dtypes of ffpf_bpf/capture/layout.py are compared with this file through BTF by a test: change both.
 * All memory here is written by one CPU at a time: what a CPU writes lies in its own cache lines, and XDP and tc
 * programs do not interrupt each other on a CPU (softirqs are off while they run).
 */
#ifndef FFPF_H
#define FFPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum ffpf_fate {
	FFPF_FILTERED = 0,
	FFPF_SAMPLED = 1,
	FFPF_LIMITED = 2,
	FFPF_COUNTED = 3,
	FFPF_DELIVERED = 4,
	FFPF_RING_FULL = 5,
	FFPF_FATES = 6,
};

/* What follows a program in the chain: slots of the prog array that each object of a chain has for itself. */
enum ffpf_link {
	FFPF_NEXT = 0,    /* the next segment of the tap */
	FFPF_DELIVER = 1, /* this segment's own deliver program */
	FFPF_LINKS = 2,
};

/* A tap's map: one ffpf_tap, then an ffpf_scratch for each possible CPU. */
struct ffpf_tap {
	__u32 active;    /* flows that are switched on; 0: pass everything on at once */
	__u32 owner_pid; /* the process that holds the chain */
	__u64 seed;      /* of the hashes of flows: random, the same at all taps of a process */
	/* tc: how many bytes of a frame the programs of the chain look at, and of one with IPv6 extension headers. */
	__u32 reach;
	__u32 far_reach;
	__u64 owner_began; /* when that process did, in ticks since the host did */
	__u32 owner_pids;  /* which PID namespace it is in */
	__u32 monitor;     /* 1: frames end behind the chain (for who looks from outside) */
	__u8 reserved[24];
};

/* What is known of a packet's headers; see dissect.h. */
struct ffpf_headers {
	__u32 known;      /* 0 until somebody asked */
	__u16 ethertype;  /* behind up to two VLAN tags */
	__u16 vlan;       /* id of the outer tag, FFPF_NO_VLAN without one */
	__u16 l3;         /* offset behind Ethernet header and tags, at most 22 */
	__u16 l4;         /* offset behind the IP header and IPv6 extension headers; l3 if it is not IP */
	__u16 payload;    /* offset behind the transport header, as long as that says; the frame's end if that is cut */
	__u16 sport;      /* TCP, UDP, SCTP */
	__u16 dport;
	__u8 version;     /* 4, 6, or 0: not IP, or the first 20 (IPv4) or 40 bytes of its header are cut */
	__u8 protocol;    /* IPv4's, or the last next header of IPv6 */
	__u8 fragment;    /* 0: none, 1: the first one, 2: a later one, which has no transport header */
	__u8 ports;       /* 1: sport and dport are there */
	__u8 tcp_flags;
	__u8 traffic;     /* IPv4 type of service, IPv6 traffic class */
	__u8 ttl;         /* IPv4 time to live, IPv6 hop limit */
	__u8 tcp;         /* 1: the first 20 bytes of a TCP header, so tcp_flags are there */
};

#define FFPF_NO_VLAN 0xffff

struct ffpf_scratch {
	__u64 now_ns;  /* clock of this packet, 0 until somebody asked */
	__u64 grabbed; /* sinks of the segment that this packet reached: bit i is the segment's sink i */
	struct ffpf_headers headers;
	__u64 flow_hash; /* of its 5-tuple, 0 until somebody asked */
	__u64 packet;    /* its number: no other packet of this tap and CPU has it */
	/* tc: the frame's length on the wire, and how much of it is in this CPU's ffpf_frame; 0: it is read where it lies. */
	__u32 length;
	__u32 copied;
	__u8 reserved[56];
};

/*
 * The map ffpf_frame of a tap at tc has so many bytes for each possible CPU: the beginning of a frame whose VLAN tag is
 * not in its bytes, or whose bytes are not all in one piece. It begins at FFPF_FRAME_START, so that IP headers are aligned.
 * Whatever offset a program may look at (FFPF_FARTHEST) lies inside, so the verifier needs no look at the frame's end.
 */
#define FFPF_FRAME_BYTES 0x10000
#define FFPF_FRAME_START 2
#define FFPF_LONGEST_REACH (FFPF_FRAME_BYTES - 4)

/*
 * The longest frame that flows see, twice what TCP hands down to be cut (GSO_MAX_SIZE): what is proved of a flow says nothing
 * about longer ones, which are passed over.
 */
#define FFPF_LONGEST_FRAME 0xfffff

/*
 * A flow's map: one ffpf_flow, then for each possible CPU an ffpf_cpu, its counters and its nodes' memory; then tables;
 * then for each possible CPU the packet ring's ffpf_ring and readers, and the index ring.
 */
struct ffpf_flow {
	__u32 toggle; /* written by the application: 1 runs the flow, 0 skips it */
	__u32 reserved0;
	__u64 clock_offset_ns; /* written by the application: wall clock minus CLOCK_MONOTONIC */
	__u8 reserved[48];
};

struct ffpf_cpu {
	__u64 seen;
	__u64 fates[FFPF_FATES];
	__u8 reserved[8];
};

/*
 * A packet ring is one flow's, or shared by flows of a group. This lies in the map of the flow that brought it, for each
 * CPU, with an ffpf_reader for each flow that may read it. A record's position is its number since the ring was made; it
 * lies in slot position modulo the slots. Which records are a flow's is told by its index ring, in its own map: entry n
 * modulo the slots is the position of its n-th record, or, in a flow whose sinks differ, or whose nodes have results, an
 * ffpf_entry. Other flows whose ring cannot be shared have no index.
 */
struct ffpf_ring {
	/* written by the kernel */
	__u64 head;   /* the position that comes next */
	__u64 limit;  /* up to here nothing is overwritten that a reader waits for */
	__u64 stored; /* the packet of the last record: its number times 256, plus the number of its tap */
	__u8 reserved0[40];
	/* written by the application */
	__u32 readers; /* how many there have been */
	__u8 reserved1[60];
};

#define FFPF_MOST_READERS 32

enum ffpf_pace {
	FFPF_ABSENT = 0,
	FFPF_SLOW = 1, /* nothing is overwritten that it has not given back */
	FFPF_FAST = 2, /* nobody waits for it */
};

struct ffpf_reader {
	/* written by the kernel */
	__u64 indexed; /* entries of its index ring so far */
	__u64 first;   /* the position in the entry that came when there was none to read */
	__u8 reserved0[48];
	/* written by the application, in a cache line of its own */
	__u32 pace;
	__u32 reserved1;
	__u64 tail;    /* entries given back; without an index, records */
	__u64 wait;    /* no record before this position is waited for */
	__u64 overrun; /* records that were overwritten before they were read */
	__u64 bell;    /* the entry (without an index, the record) of this number wakes the application */
	__u8 reserved2[24];
};

/*
 * A slot of the packet ring is a pcapng Enhanced Packet Block (draft-ietf-opsawg-pcapng, section 4.3). The application
 * fills in what never changes (type, both lengths) when it makes the ring. Data is padded to 4 bytes; what is left of
 * the slot is one option with a local-use code.
 */
struct ffpf_slot {
	__u32 block_type;
	__u32 block_length;
	__u32 interface;
	__u32 time_high;
	__u32 time_low;
	__u32 captured;
	__u32 original;
	/* __u8 data[]; then the filling option; then __u32 block_length again */
};

/* Codes from 0x8000 on are for local use; Apple's tools took the first ones. */
#define FFPF_FILL_OPTION 0xfffe

/* What a packet was to a flow. */
struct ffpf_entry {
	__u64 position;
	__u32 sinks;  /* the flow's sinks that the packet reached, a bit each in the order of the graph */
	__u32 result; /* of the last node on its way that has results; FFPF_NO_RESULT if it met none */
};

#define FFPF_NO_RESULT 0x10000

/*
 * What a primitive sees of the packet. Bytes from data up to end may be read, after the usual bounds check.
 * ffpf_now_ns() and dissect.h's ffpf_headers(), ffpf_flow_hash() tell the rest.
 */
struct ffpf_packet {
	void *data;
	void *end;
	__u64 length; /* on the wire, in bytes */
	struct ffpf_scratch *scratch;
	const struct ffpf_tap *tap;
};

/*
 * A packet's copy before it comes into the ring, at the beginning of a node's memory: `captured` bytes, which a rewriting
 * primitive changes, or makes fewer. Volatile, so that the verifier forgets how they came about.
 *
 * It is copied in words that begin at `before`, as an IP header behind an Ethernet header does: the CPU hands what was just
 * stored on to whoever loads the same word, or a part of it, but whoever loads more waits. So store whole words.
 */
struct ffpf_copy {
	volatile __u32 captured;
	volatile __u32 wanted; /* of which so many go into the ring at most */
	__u16 before;
	__u8 data[];
};

/* Memory for a copy of so many bytes, a multiple of 8: its last word may be half its own. */
#define FFPF_COPY_BYTES(bytes) (16 + (bytes))

/* A primitive is inlined where the graph calls it. */
#define FFPF_PRIMITIVE __attribute__((always_inline))

/* Keeps the optimiser from deriving one register from another, so that the verifier sees the check on the value used. */
#define FFPF_OPAQUE(value) asm volatile("" : "+r"(value))

/* Whether `count` is 0, by a comparison with a register: from one with 0 older verifiers (5.10) learn no lower bound. */
static __always_inline int ffpf_is_none(__u64 count)
{
	__u64 one = 1;

	FFPF_OPAQUE(one);
	return count < one;
}

/*
 * Publishes what was stored before. Stores are not reordered on x86-64 (TSO), so keeping the compiler in order is
 * enough; elsewhere an atomic exchange is the one full barrier every kernel's JIT has.
 */
#define FFPF_BARRIER() asm volatile("" ::: "memory")

/* The verifier knows packet bytes up to 65,535, the end of a look included: no offset it is begun at may be farther. */
#define FFPF_FARTHEST 0xff00

/*
 * The address of `bytes` (a constant) packet bytes from `offset` on, or 0 if the packet is shorter. The offset is made
 * opaque, so that the verifier sees the check on the very register that is added.
 */
static __always_inline void *ffpf_at(const struct ffpf_packet *packet, __u64 offset, __u64 bytes)
{
	void *at;

	FFPF_OPAQUE(offset);
	if (offset > FFPF_FARTHEST)
		return 0;
	at = packet->data + offset;
	FFPF_OPAQUE(at);
	if (at + bytes > packet->end)
		return 0;
	return at;
}

/*
 * The packet's length, to compare and to count with. The verifier must not learn of packet->length itself: the compiler
 * adds and takes that away from what shall be forgotten (compiler/predicate.py, forget). An OR parts copies that
 * the verifier knows to be equal; a plain copy, or one plus a constant, it narrows along.
 */
static __always_inline __u64 ffpf_length(const struct ffpf_packet *packet)
{
	__u64 nothing = 0;

	FFPF_OPAQUE(nothing);
	return packet->length | nothing;
}

static __always_inline __u16 ffpf_be16(const void *at)
{
	return __builtin_bswap16(*(const __u16 *)at);
}

/* A packet enters the chain: it has a number of its own, and nothing else is known of it. */
static __always_inline void ffpf_enter(struct ffpf_scratch *scratch)
{
	scratch->now_ns = 0;
	scratch->headers.known = 0;
	scratch->flow_hash = 0;
	scratch->packet++;
}

/* This packet's time on the monotonic clock: read once, 26 ns. */
static __always_inline __u64 ffpf_now_ns(const struct ffpf_packet *packet)
{
	if (!packet->scratch->now_ns)
		packet->scratch->now_ns = bpf_ktime_get_ns();
	return packet->scratch->now_ns;
}

#if defined(FFPF_STORES_IN_ORDER)
#define FFPF_PUBLISH(place, value)                      \
	do {                                            \
		FFPF_BARRIER();                         \
		*(volatile __u64 *)(place) = (value);   \
	} while (0)
#else
#define FFPF_PUBLISH(place, value) __sync_lock_test_and_set((__u64 *)(place), (value))
#endif

/*
 * Copies the first `wanted` bytes of the frame as it is on the wire, which the caller has shown to be 1 to `longest`;
 * whether that failed. xdp.c and tc.c have it.
 */
extern __s64 ffpf_load_frame(void *ctx, void *to, __u64 wanted, __u64 longest);

#endif
