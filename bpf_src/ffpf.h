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
	__u8 reserved[56];
};

struct ffpf_scratch {
	__u64 now_ns;  /* clock of this packet, 0 until somebody asked */
	__u64 grabbed; /* sinks of the segment that this packet reached: bit i is the segment's sink i */
	__u8 reserved[48];
};

/* A flow's map: one ffpf_flow, then for each possible CPU an ffpf_cpu, its counters and its nodes' memory. */
struct ffpf_flow {
	__u32 toggle; /* written by the application: 1 runs the flow, 0 skips it */
	__u32 reserved0;
	__u64 clock_offset_ns; /* written by the application: wall clock minus CLOCK_MONOTONIC */
	__u8 reserved[48];
};

struct ffpf_cpu {
	/* written by the kernel */
	__u64 head; /* slots published so far */
	__u64 seen;
	__u64 fates[FFPF_FATES];
	/* written by the application, in a cache line of its own */
	__u64 tail; /* slots given back so far */
	__u8 reserved[56];
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

/* What a primitive sees of the packet. Bytes from data up to end may be read, after the usual bounds check. */
struct ffpf_packet {
	void *data;
	void *end;
	__u32 length; /* on the wire, in bytes */
};

/* A primitive is inlined where the graph calls it. */
#define FFPF_PRIMITIVE __attribute__((always_inline))

/* Keeps the optimiser from deriving one register from another, so that the verifier sees the check on the value used. */
#define FFPF_OPAQUE(value) asm volatile("" : "+r"(value))

/*
 * Publishes what was stored before. Stores are not reordered on x86-64 (TSO), so keeping the compiler in order is
 * enough; elsewhere an atomic exchange is the one full barrier every kernel's JIT has.
 */
#if defined(FFPF_STORES_IN_ORDER)
#define FFPF_PUBLISH(place, value)                      \
	do {                                            \
		asm volatile("" ::: "memory");          \
		*(volatile __u64 *)(place) = (value);   \
	} while (0)
#else
#define FFPF_PUBLISH(place, value) __sync_lock_test_and_set((__u64 *)(place), (value))
#endif

#endif
