/* SPDX-License-Identifier: GPL-2.0-only */
/* SipHash-2-4 (Aumasson and Bernstein, 2012), by words: `begin`, `word` for each 8 bytes, `end` for what remains. */
#ifndef SIPHASH_H
#define SIPHASH_H

#include "wire.h"

struct siphash {
	__u64 a, b, c, d;
};

#define ROTATED(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))

INLINE void siphash_rounds(struct siphash *s, int rounds)
{
#pragma unroll
	for (int round = 0; round < rounds; round++) {
		s->a += s->b;
		s->c += s->d;
		s->b = ROTATED(s->b, 13) ^ s->a;
		s->d = ROTATED(s->d, 16) ^ s->c;
		s->a = ROTATED(s->a, 32);
		s->c += s->b;
		s->a += s->d;
		s->b = ROTATED(s->b, 17) ^ s->c;
		s->d = ROTATED(s->d, 21) ^ s->a;
		s->c = ROTATED(s->c, 32);
	}
}

INLINE struct siphash siphash_begin(const __u64 *key)
{
	return (struct siphash){key[0] ^ 0x736f6d6570736575ull, key[1] ^ 0x646f72616e646f6dull,
				key[0] ^ 0x6c7967656e657261ull, key[1] ^ 0x7465646279746573ull};
}

INLINE void siphash_word(struct siphash *s, __u64 word)
{
	s->d ^= word;
	siphash_rounds(s, 2);
	s->a ^= word;
}

/* `last`: what is left of the message, and in the highest byte its length. */
INLINE __u64 siphash_end(struct siphash *s, __u64 last)
{
	siphash_word(s, last);
	s->c ^= 0xff;
	siphash_rounds(s, 4);
	return s->a ^ s->b ^ s->c ^ s->d;
}

#endif
