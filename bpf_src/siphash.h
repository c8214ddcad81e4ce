/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SipHash-2-4 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012): a pseudorandom function with
 * a key of 128 bits and an output of 64. A message is taken as words of 8 bytes, the first byte lowest; the last word
 * holds what remains, 0 to 7 bytes, and in its highest byte the length of the message modulo 256.
 */
#ifndef FFPF_SIPHASH_H
#define FFPF_SIPHASH_H

#include "ffpf.h"

struct ffpf_siphash {
	__u64 v0, v1, v2, v3;
};

static __always_inline __u64 ffpf_rotated(__u64 x, int bits)
{
	return x << bits | x >> (64 - bits);
}

static __always_inline void ffpf_siphash_round(struct ffpf_siphash *s)
{
	s->v0 += s->v1;
	s->v1 = ffpf_rotated(s->v1, 13) ^ s->v0;
	s->v0 = ffpf_rotated(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = ffpf_rotated(s->v3, 16) ^ s->v2;
	s->v0 += s->v3;
	s->v3 = ffpf_rotated(s->v3, 21) ^ s->v0;
	s->v2 += s->v1;
	s->v1 = ffpf_rotated(s->v1, 17) ^ s->v2;
	s->v2 = ffpf_rotated(s->v2, 32);
}

static __always_inline void ffpf_siphash_begin(struct ffpf_siphash *s, const __u64 *key)
{
	s->v0 = key[0] ^ 0x736f6d6570736575ull;
	s->v1 = key[1] ^ 0x646f72616e646f6dull;
	s->v2 = key[0] ^ 0x6c7967656e657261ull;
	s->v3 = key[1] ^ 0x7465646279746573ull;
}

static __always_inline void ffpf_siphash_word(struct ffpf_siphash *s, __u64 word)
{
	s->v3 ^= word;
	ffpf_siphash_round(s);
	ffpf_siphash_round(s);
	s->v0 ^= word;
}

static __always_inline __u64 ffpf_siphash_end(struct ffpf_siphash *s, __u64 last)
{
	ffpf_siphash_word(s, last);
	s->v2 ^= 0xff;
	for (int round = 0; round < 4; round++)
		ffpf_siphash_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

#endif
