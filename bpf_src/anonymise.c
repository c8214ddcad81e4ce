/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * anonymise: of the copy, headers whose addresses are pseudonyms; what is not known to be harmless is not shown.
 *
 * table: the key, 16 bytes. mbuf: struct memory, then pseudonyms that are known already, direct-mapped: `entries` (a
 * power of two) of struct value_entry, and as many of struct address_entry. They tell real addresses: private.
 *
 * ffpf_anonymise_keep() says up to where a packet is understood, and nothing behind that is even copied;
 * ffpf_anonymise_rewrite() rewrites that much. Where it cannot, it makes the copy shorter.
 */
#include "dissect.h"
#include "siphash.h"

#define COPY_BYTES 256
#define MOST_HEADER_BYTES 236 /* before the transport header, of which at most 20 are shown */
#define MOST_OPTION_WORDS 10
#define FEISTEL_ROUNDS 4
#define BROADCAST 0xffffffffffffull
#define NOPS 0x01010101
#define CHECKSUM 0xffff0000ull /* of the second word of an IPv4 header */

/* What a message to SipHash is about: its last byte. Messages of different kinds differ in length, too. */
enum kind { KIND_MAC = 1, KIND_PORT = 2, KIND_IP4 = 4, KIND_IP6 = 6 };

/* Where rewrite_extensions() is goes through memory, so that the verifier goes on with one state. */
struct memory {
	__u8 copy[FFPF_COPY_BYTES(COPY_BYTES)];
	volatile __u64 extension; /* where the next extension header begins */
	volatile __u32 protocol;  /* and which it is */
	volatile __u32 whole;     /* whether the one before it is shown whole */
};

/* Free as long as `original` is 0: in use it has the kind in its highest byte. */
struct value_entry {
	__u64 original, pseudonym;
};

/* An IPv6 address, in host byte order. */
struct address {
	__u64 high, low;
};

/* Free as long as its pseudonym is 0. */
struct address_entry {
	struct address original, pseudonym;
};

struct anonymiser {
	const __u64 *key;
	struct value_entry *values;
	struct address_entry *addresses;
	__u64 entries, seed;
};

/* Read again each time, so that the verifier does not tell apart what was compared with it. */
typedef const volatile struct ffpf_headers *known_headers;

static __always_inline int is_extension(__u8 protocol)
{
	return protocol == FFPF_HOP_BY_HOP || protocol == FFPF_ROUTING || protocol == FFPF_FRAGMENT ||
	       protocol == FFPF_AH || protocol == FFPF_DESTINATION || protocol == FFPF_MOBILITY;
}

/* The address of `bytes` (a constant) bytes of the copy, or 0 if it is shorter. */
static __always_inline void *copy_at(const struct ffpf_copy *copy, __u64 offset, __u64 bytes)
{
	FFPF_OPAQUE(offset);
	if (offset > COPY_BYTES - bytes || offset + bytes > copy->captured)
		return 0;
	return (void *)copy->data + offset;
}

/* SipHash of a message of at most 7 bytes. */
static __always_inline __u64 hash_short(const struct anonymiser *a, __u64 message, int bytes)
{
	struct ffpf_siphash state;

	ffpf_siphash_begin(&state, a->key);
	return ffpf_siphash_end(&state, message | (__u64)bytes << 56);
}

/* 46 random bits, marked as locally administered; a group's remains a group's. The first byte is the lowest. */
static __always_inline __u64 mac_pseudonym(const struct anonymiser *a, __u64 mac)
{
	__u64 hash = hash_short(a, mac | (__u64)KIND_MAC << 48, 7);

	return (hash & (BROADCAST ^ 3)) | 2 | (mac & 1);
}

/* A Feistel network of two halves of 8 bits: one to one on all 65,536 ports. */
static __always_inline __u64 port_pseudonym(const struct anonymiser *a, __u64 port)
{
	__u64 left = port >> 8, right = port & 0xff;

#pragma clang loop unroll(disable)
	for (__u64 round = 0; round < FEISTEL_ROUNDS; round++) {
		__u64 hash = hash_short(a, right | round << 8 | KIND_PORT << 16, 3);

		hash = (hash & 0xff) ^ left;
		left = right;
		right = hash;
	}
	return left << 8 | right;
}

/*
 * Prefix-preserving (Xu, Fan, Ammar, Moon, ICNP 2002): bit i is flipped by a function of the bits before it. One hash
 * of the bits before a block of 6, of their number and the kind holds that function's values at all 63 places that the
 * block may lead to: bit 2^level - 1 + (its first `level` bits). Returns which of its bits are flipped.
 */
static __always_inline __u64 flipped(__u64 hash, __u64 block)
{
	__u64 flips = 0;

#pragma clang loop unroll(full)
	for (int level = 0; level < 6; level++)
		flips = flips << 1 | (hash >> ((1 << level) - 1 + (block >> (6 - level))) & 1);
	return flips;
}

/* 5 blocks of 6 bits, and one of 2. */
static __always_inline __u64 ip4_pseudonym(const struct anonymiser *a, __u64 address)
{
	__u64 before = 0, flips = 0, left = address << 32;

#pragma clang loop unroll(disable)
	for (__u64 bits = 0; bits < 36; bits += 6) {
		__u64 hash = hash_short(a, before | bits << 32 | (__u64)KIND_IP4 << 40, 6), block = left >> 58;

		flips = flips << 6 | flipped(hash, block);
		before = before << 6 | block;
		left <<= 6;
	}
	return address ^ flips >> 4;
}

/* 21 blocks of 6 bits, and one of 2. */
static __always_inline struct address ip6_pseudonym(const struct anonymiser *a, struct address address)
{
	struct address before = {}, flips = {}, left = address;

#pragma clang loop unroll(disable)
	for (__u64 bits = 0; bits < 132; bits += 6) {
		__u64 block = left.high >> 58, width = bits < 126 ? 6 : 2, flips_here;
		struct ffpf_siphash state;

		ffpf_siphash_begin(&state, a->key);
		ffpf_siphash_word(&state, before.high);
		ffpf_siphash_word(&state, before.low);
		flips_here = flipped(ffpf_siphash_end(&state, bits | KIND_IP6 << 8 | 18ull << 56), block);
		flips.high = flips.high << width | flips.low >> (64 - width);
		flips.low = flips.low << width | flips_here >> (6 - width);
		before.high = before.high << 6 | before.low >> 58;
		before.low = before.low << 6 | block;
		left.high = left.high << 6 | left.low >> 58;
		left.low <<= 6;
	}
	flips.high ^= address.high;
	flips.low ^= address.low;
	return flips;
}

static __always_inline __u64 place_of(const struct anonymiser *a, __u64 what)
{
	__u64 place = (what ^ a->seed) * 0x9e3779b97f4a7c15ull >> 40;

	FFPF_OPAQUE(place);
	return place & (a->entries - 1);
}

/* The pseudonym of anything but an IPv6 address. */
static __always_inline __u64 value_pseudonym(const struct anonymiser *a, enum kind kind, __u64 value)
{
	__u64 original = (__u64)kind << 56 | value;
	struct value_entry *entry = a->values + place_of(a, original);

	if (entry->original != original) {
		entry->pseudonym = kind == KIND_IP4 ? ip4_pseudonym(a, value) :
				   kind == KIND_MAC ? mac_pseudonym(a, value) :
						      port_pseudonym(a, value);
		entry->original = original;
	}
	return *(volatile __u64 *)&entry->pseudonym;
}

static __always_inline const struct address *address_pseudonym(const struct anonymiser *a, struct address address)
{
	struct address_entry *entry = a->addresses + place_of(a, address.high * 3 + address.low);
	__u64 other = (entry->original.high ^ address.high) | (entry->original.low ^ address.low);
	__u64 used = entry->pseudonym.high | entry->pseudonym.low;

	other |= ~(used | -used) >> 63;
	FFPF_OPAQUE(other); /* one branch for the verifier, not three */
	if (other) {
		entry->pseudonym = ip6_pseudonym(a, address);
		entry->original = address;
	}
	FFPF_BARRIER();
	return &entry->pseudonym;
}

/* The destination is all of the copy's first word but 2 bytes, the source the beginning of the second. */
static __always_inline void rewrite_macs(const struct anonymiser *a, void *ethernet)
{
	__u64 *words = ethernet - 2;

#pragma clang loop unroll(disable)
	for (int shift = 16; shift >= 0; shift -= 16) {
		__u64 mac = *words >> shift & BROADCAST;

		if (mac != BROADCAST)
			*words = (*words & ~(BROADCAST << shift)) | value_pseudonym(a, KIND_MAC, mac) << shift;
		words++;
	}
}

/* An IPv4 header's checksum, of the sum of its other words of 16 or 32 bits. */
static __always_inline __u64 checksum(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16)) & 0xffff;
}

/* Addresses replaced, options made NOPs, the checksum worked out anew. */
static __always_inline int rewrite_ip4(const struct anonymiser *a, const struct ffpf_copy *copy, known_headers headers)
{
	__u64 sum = 0, offset = headers->l3 + 20;
	__u64 *ip = copy_at(copy, headers->l3, 20), *word = ip;
	__u32 *option;

	if (!ip)
		return 0;
#pragma clang loop unroll(disable)
	for (int shift = 32; shift >= 0; shift -= 32) {
		__u64 address = __builtin_bswap32(*++word >> shift);

		address = __builtin_bswap32(value_pseudonym(a, KIND_IP4, address));
		*word = (*word & 0xffffffffull << (32 - shift)) | address << shift;
	}
#pragma clang loop unroll(disable)
	for (int word = 0; word < MOST_OPTION_WORDS && offset < headers->l4; word++) {
		option = copy_at(copy, offset, 4);
		if (!option)
			return 0;
		*option = NOPS;
		sum += 2 * (NOPS & 0xffff);
		offset += 4;
	}
	ip[1] &= ~CHECKSUM;
	sum += (ip[0] >> 32) + (__u32)ip[0] + (ip[1] >> 32) + (__u32)ip[1] + (__u32)ip[2];
	ip[1] |= checksum(sum) << 16;
	return 1;
}

/* Of extension headers, what comes next and the length stay; of a fragment header all. They must end at l4. */
static __always_inline int rewrite_extensions(const struct ffpf_copy *copy, struct memory *memory,
					      known_headers headers)
{
	__u64 offset = memory->extension;

#pragma clang loop unroll(disable)
	for (int number = 0; number < MOST_HEADER_BYTES / 4 && offset < headers->l4; number++) {
		__u8 *word = copy_at(copy, offset, 4), protocol = memory->protocol;

		if (!word)
			return 0;
		if (offset == memory->extension) {
			memory->extension += protocol == FFPF_AH       ? (word[1] + 2) * 4 :
					     protocol == FFPF_FRAGMENT ? 8 :
									 (word[1] + 1) * 8;
			memory->protocol = word[0];
			memory->whole = protocol == FFPF_FRAGMENT;
			if (!memory->whole)
				word[2] = word[3] = 0;
		} else if (!memory->whole) {
			*(__u32 *)word = 0;
		}
		offset += 4;
	}
	return memory->extension == headers->l4;
}

static __always_inline int rewrite_ip6(const struct anonymiser *a, const struct ffpf_copy *copy, struct memory *memory,
				       known_headers headers)
{
	__u8 *ip = copy_at(copy, headers->l3, 40);

	if (!ip)
		return 0;
#pragma clang loop unroll(disable)
	for (int at = 8; at < 40; at += 16) {
		__u64 *words = (__u64 *)(ip + at);
		struct address real = {__builtin_bswap64(words[0]), __builtin_bswap64(words[1])};
		const struct address *shown = address_pseudonym(a, real);

		words[0] = __builtin_bswap64(shown->high);
		words[1] = __builtin_bswap64(shown->low);
	}
	memory->extension = headers->l3 + 40;
	memory->protocol = ip[6];
	return rewrite_extensions(copy, memory, headers);
}

/* The bytes of the transport header that are shown: 0 if there is none, or none that is known. */
static __always_inline __u64 transport_bytes(const struct ffpf_headers *headers)
{
	__u8 protocol = headers->protocol;

	if (headers->fragment == 2)
		return 0;
	if (protocol == FFPF_TCP)
		return 20;
	if (protocol == FFPF_SCTP)
		return 12;
	return protocol == FFPF_UDP || protocol == (headers->version == 4 ? FFPF_ICMP : FFPF_ICMP6) ? 8 : 0;
}

static __always_inline void rewrite_ports(const struct anonymiser *a, __u16 *ports)
{
#pragma clang loop unroll(disable)
	for (int place = 0; place < 2; place++)
		ports[place] = __builtin_bswap16(value_pseudonym(a, KIND_PORT, __builtin_bswap16(ports[place])));
}

/* Checksums tell of payload and real addresses; of ICMP, type and code alone are harmless. */
static __always_inline int rewrite_transport(const struct anonymiser *a, const struct ffpf_copy *copy,
					     known_headers headers, __u64 ports)
{
	__u16 *header = copy_at(copy, headers->l4, 8), *more;
	__u8 protocol = headers->protocol;

	if (!header)
		return 0;
	if (protocol == FFPF_TCP || protocol == FFPF_SCTP) {
		more = copy_at(copy, headers->l4 + (protocol == FFPF_TCP ? 16 : 8), 4);
		if (!more)
			return 0;
		more[0] = 0;
		if (protocol == FFPF_SCTP)
			more[1] = 0;
	} else {
		header[3] = 0;
		if (protocol != FFPF_UDP) {
			header[1] = header[2] = 0;
			return 1;
		}
	}
	if (ports)
		rewrite_ports(a, header);
	return 1;
}

/* Where the IP packet ends, as its header says, or the frame before it; 0 if there is none that is understood. */
static __always_inline __u64 ip_end(const struct ffpf_packet *packet, const struct ffpf_headers *headers)
{
	__u64 l3 = headers->l3, end = 0;
	const void *ip;

	if (headers->version == 4) {
		ip = ffpf_at(packet, l3, 20);
		if (ip)
			end = l3 + ffpf_be16(ip + 2);
	} else if (headers->version == 6 && (headers->fragment == 2 || !is_extension(headers->protocol))) {
		ip = ffpf_at(packet, l3, 40);
		if (ip)
			end = l3 + 40 + ffpf_be16(ip + 4);
	}
	return end < packet->length ? end : packet->length;
}

/* Up to where the packet is understood: behind its transport header, its IP header, its Ethernet header, or nowhere. */
FFPF_PRIMITIVE __u64 ffpf_anonymise_keep(const struct ffpf_packet *packet, void *mbuf, void *table, __u64 entries,
					 __u64 ports)
{
	const struct ffpf_headers *headers = ffpf_kept_headers(packet);
	__u64 l3 = headers->l3, l4 = headers->l4, end = ip_end(packet, headers), shown = transport_bytes(headers);

	if (packet->length < l3)
		return 0;
	if (end < l4 || l4 == l3 || l4 > MOST_HEADER_BYTES)
		return l3;
	return end < l4 + shown || headers->payload < l4 + shown ? l4 : l4 + shown;
}

/* The pseudonym of a value in place of it, if it is known already. */
static __always_inline int take_known(const struct anonymiser *a, enum kind kind, __u64 *value)
{
	__u64 original = (__u64)kind << 56 | *value;
	const struct value_entry *entry = a->values + place_of(a, original);

	if (entry->original != original)
		return 0;
	*value = entry->pseudonym;
	return 1;
}

/* Both words of an IPv6 header's address, likewise. */
static __always_inline int take_known_ip6(const struct anonymiser *a, __u64 *words)
{
	struct address address = {__builtin_bswap64(words[0]), __builtin_bswap64(words[1])};
	const struct address_entry *entry = a->addresses + place_of(a, address.high * 3 + address.low);
	__u64 other = (entry->original.high ^ address.high) | (entry->original.low ^ address.low);

	if (other || !(entry->pseudonym.high | entry->pseudonym.low))
		return 0;
	words[0] = __builtin_bswap64(entry->pseudonym.high);
	words[1] = __builtin_bswap64(entry->pseudonym.low);
	return 1;
}

#define WORD(at, offset) (*(__u64 *)((at) + (offset)))
#define HALF(at, offset) (*(__u32 *)((at) + (offset)))

/* The IPv4 header at `from`, its addresses known, in the record at `to`. */
static __always_inline int show_known_ip4(const struct anonymiser *a, const void *from, void *to)
{
	__u64 first = WORD(from, 0), second = WORD(from, 8), sum;
	__u64 source = __builtin_bswap32(second >> 32), destination = __builtin_bswap32(HALF(from, 16));

	if (!take_known(a, KIND_IP4, &source) || !take_known(a, KIND_IP4, &destination))
		return 0;
	destination = __builtin_bswap32(destination);
	second = (second & 0xffff) | (__u64)__builtin_bswap32(source) << 32;
	sum = (first >> 32) + (__u32)first + (second >> 32) + (__u32)second + destination;
	WORD(to, 0) = first;
	WORD(to, 8) = second | checksum(sum) << 16;
	HALF(to, 16) = destination;
	return 1;
}

/* Likewise, an IPv6 header. */
static __always_inline int show_known_ip6(const struct anonymiser *a, const void *from, void *to)
{
	__u64 source[2] = {WORD(from, 8), WORD(from, 16)}, destination[2] = {WORD(from, 24), WORD(from, 32)};

	if (!take_known_ip6(a, source) || !take_known_ip6(a, destination))
		return 0;
	WORD(to, 0) = WORD(from, 0);
	WORD(to, 8) = source[0];
	WORD(to, 16) = source[1];
	WORD(to, 24) = destination[0];
	WORD(to, 32) = destination[1];
	return 1;
}

/* The headers of TCP or UDP at `from`, without checksums, and zeros up to a multiple of 4. */
static __always_inline void show_transport(const void *from, void *to, int is_tcp)
{
	if (is_tcp) {
		WORD(to, 0) = WORD(from, 0);
		WORD(to, 8) = WORD(from, 8);
		WORD(to, 16) = HALF(from, 16) & ~0xffffu;
	} else {
		WORD(to, 0) = WORD(from, 0) & ~0ull >> 16;
		HALF(to, 8) = 0;
	}
}

/*
 * Straight into the record, in one go, what most packets come to: TCP or UDP straight behind IP, all addresses known.
 * Returns how many bytes, or -1, and then it has written nothing.
 */
FFPF_PRIMITIVE __s64 ffpf_anonymise_known(const struct ffpf_packet *packet, void *to, void *mbuf, void *table,
					  __u64 entries, __u64 ports, __u64 wanted)
{
	struct value_entry *values = mbuf + sizeof(struct memory);
	struct anonymiser a = {table, values, (void *)(values + entries), entries, packet->tap->seed};
	__u64 destination, source, shown, end;
	struct ffpf_headers headers;
	const void *from;
	int is_tcp;

	if (ports || !ffpf_dissect_plain(packet->data, packet->end, ffpf_length(packet), &headers))
		return -1;
	is_tcp = headers.protocol == FFPF_TCP;
	shown = headers.l4 + (is_tcp ? 20 : 8);
	from = packet->data;
	if (from + 54 > packet->end || wanted < shown || headers.payload < shown)
		return -1;
	end = headers.version == 4 ? 14 + ffpf_be16(from + 16) : 54 + ffpf_be16(from + 18);
	if (end < shown)
		return -1;
	destination = WORD(from, 0) & BROADCAST;
	source = WORD(from, 6) & BROADCAST;
	if ((destination != BROADCAST && !take_known(&a, KIND_MAC, &destination)) ||
	    (source != BROADCAST && !take_known(&a, KIND_MAC, &source)))
		return -1;
	if (headers.version == 4) {
		if (!show_known_ip4(&a, from + 14, to + 14))
			return -1;
		show_transport(from + 34, to + 34, is_tcp);
	} else {
		if (from + 74 > packet->end || !show_known_ip6(&a, from + 14, to + 14))
			return -1;
		show_transport(from + 54, to + 54, is_tcp);
	}
	WORD(to, 0) = destination | source << 48;
	HALF(to, 8) = source >> 16;
	*(__u16 *)(to + 12) = *(const __u16 *)(from + 12);
	return shown;
}

FFPF_PRIMITIVE void ffpf_anonymise_rewrite(const struct ffpf_packet *packet, struct ffpf_copy *copy, void *mbuf,
					   void *table, __u64 entries, __u64 ports)
{
	known_headers headers = &packet->scratch->headers; /* ffpf_anonymise_keep() asked for them */
	struct value_entry *values = mbuf + sizeof(struct memory);
	struct anonymiser a = {table, values, (void *)(values + entries), entries, packet->tap->seed};
	void *ethernet = copy_at(copy, 0, 14);
	__u64 understood = 0;

	if (ethernet) {
		rewrite_macs(&a, ethernet);
		understood = headers->l3;
	}
	if (understood && headers->l4 > headers->l3 && copy->captured >= headers->l4 &&
	    (headers->version == 4 ? rewrite_ip4(&a, copy, headers) : rewrite_ip6(&a, copy, mbuf, headers))) {
		if (copy->captured > headers->l4 && rewrite_transport(&a, copy, headers, ports))
			return;
		understood = headers->l4;
	}
	if (copy->captured > understood)
		copy->captured = understood;
}
