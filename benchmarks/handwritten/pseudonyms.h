/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Pseudonyms of addresses by SipHash under `key`, six bits at a time, so that what two addresses have in common they
 * have in common afterwards; and this CPU's memory of those it knows, direct-mapped. The same function as that of the
 * node class, so that records can be compared.
 */
#ifndef PSEUDONYMS_H
#define PSEUDONYMS_H

#include "siphash.h"

#define ENTRIES 1024
#define KIND_MAC 1ull
#define KIND_IP4 4ull
#define KIND_IP6 6ull

struct known {
	__u64 original, pseudonym;
};
struct known_ip6 {
	__u64 high, low, pseudonym_high, pseudonym_low;
};
struct memory {
	struct known values[ENTRIES];
	struct known_ip6 addresses[ENTRIES];
};
extern __u64 key[2];
extern struct memory memory[CPUS];

INLINE struct memory *this_memory(void)
{
	__u64 cpu = bpf_get_smp_processor_id();

	asm volatile("" : "+r"(cpu));
	return &memory[cpu & (POSSIBLE_CPUS - 1)];
}

INLINE __u64 place_of(__u64 value)
{
	__u64 place = value * 0x9e3779b97f4a7c15ull >> 40;

	asm volatile("" : "+r"(place));
	return place & (ENTRIES - 1);
}

INLINE __u64 hash_short(__u64 message, __u64 bytes)
{
	struct siphash state = siphash_begin(key);

	return siphash_end(&state, message | bytes << 56);
}

/* Which of the next six bits are flipped: `hash` has a bit for each way to them. */
INLINE __u64 flipped(__u64 hash, __u64 bits)
{
	__u64 flips = hash & 1;

#pragma unroll
	for (int level = 1; level < 6; level++)
		flips = flips << 1 | (hash >> ((1 << level) - 1 + (bits >> (6 - level))) & 1);
	return flips;
}

INLINE __u64 mac_pseudonym(__u64 mac)
{
	return (hash_short(mac | KIND_MAC << 48, 7) & 0xfffffffffffcull) | 2 | (mac & 1);
}

INLINE __u32 ip4_pseudonym(__u32 address)
{
	__u64 before = 0, flips = 0, left = (__u64)address << 32;

#pragma clang loop unroll(disable)
	for (__u64 at = 0; at < 36; at += 6) {
		flips = flips << 6 | flipped(hash_short(before | at << 32 | KIND_IP4 << 40, 6), left >> 58);
		before = before << 6 | left >> 58;
		left <<= 6;
	}
	return address ^ flips >> 4;
}

INLINE void ip6_pseudonym(struct known_ip6 *known, __u64 high, __u64 low)
{
	__u64 before_high = 0, before_low = 0, flips_high = 0, flips_low = 0, left_high = high, left_low = low;

#pragma clang loop unroll(disable)
	for (__u64 at = 0; at < 132; at += 6) {
		__u64 bits = left_high >> 58, width = at < 126 ? 6 : 2, flips;
		struct siphash state = siphash_begin(key);

		siphash_word(&state, before_high);
		siphash_word(&state, before_low);
		flips = flipped(siphash_end(&state, at | KIND_IP6 << 8 | 18ull << 56), bits);
		flips_high = flips_high << width | flips_low >> (64 - width);
		flips_low = flips_low << width | flips >> (6 - width);
		before_high = before_high << 6 | before_low >> 58;
		before_low = before_low << 6 | bits;
		left_high = left_high << 6 | left_low >> 58;
		left_low <<= 6;
	}
	*known = (struct known_ip6){high, low, high ^ flips_high, low ^ flips_low};
}

INLINE __u64 mac_shown(struct memory *memory, __u64 mac)
{
	__u64 original = KIND_MAC << 56 | mac;
	struct known *known = &memory->values[place_of(original)];

	if (known->original != original)
		*known = (struct known){original, mac_pseudonym(mac)};
	return known->pseudonym;
}

INLINE __u32 ip4_shown(struct memory *memory, __u32 address)
{
	__u64 original = KIND_IP4 << 56 | address;
	struct known *known = &memory->values[place_of(original)];

	if (known->original != original)
		*known = (struct known){original, ip4_pseudonym(address)};
	return known->pseudonym;
}

INLINE struct known_ip6 *ip6_shown(struct memory *memory, __u64 high, __u64 low)
{
	struct known_ip6 *known = &memory->addresses[place_of(high * 3 + low)];

	if (known->high != high || known->low != low || !(known->pseudonym_high | known->pseudonym_low))
		ip6_pseudonym(known, high, low);
	return known;
}

#endif
