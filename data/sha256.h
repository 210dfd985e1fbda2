// sha256.h: SHA-256 (FIPS 180-4) and HMAC-SHA256 (RFC 2104), for proofs that a process knows a secret.
//
//     unsigned char sum[SHA256_BYTES];
//     sha256_hmac(sum, key, key_bytes, text, text_bytes)
//     sha256_equal(sum, other)     // in a time that does not tell where they differ
//
// SHA-256 takes 64 bytes at a time into a state of eight words; the text is padded with a bit 1, zeros, and
// its length in bits. HMAC is H(key ^ 5c.., H(key ^ 36.., text)), the key filled up with zeros to 64 bytes.

#ifndef GPT2_SP_SHA256_H
#define GPT2_SP_SHA256_H

#include <stdint.h>
#include <string.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif

enum { SHA256_BYTES = 32, SHA256_BLOCK = 64 };

typedef struct {
    uint32_t state[8];
    uint64_t bytes;                      // taken so far
    unsigned char block[SHA256_BLOCK];   // the last of them, bytes % SHA256_BLOCK
} sha256_sum;

GPT2_SP_LEAF uint32_t sha256_turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

// One block into the state.
GPT2_SP_LEAF void sha256_block(uint32_t state[8], const unsigned char* block) {
    // the first 32 bits of the fractions of the cube roots of the first 64 primes
    static const uint32_t k[64] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
        0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
        0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
        0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb,
        0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624,
        0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
        0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb,
        0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
            (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (sha256_turn(a, 7) ^ sha256_turn(a, 18) ^ a >> 3) +
            (sha256_turn(b, 17) ^ sha256_turn(b, 19) ^ b >> 10);
    }
    memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t a = v[0], e = v[4];
        uint32_t one = v[7] + (sha256_turn(e, 6) ^ sha256_turn(e, 11) ^ sha256_turn(e, 25)) +
            ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
        uint32_t two = (sha256_turn(a, 2) ^ sha256_turn(a, 13) ^ sha256_turn(a, 22)) +
            ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof v[0]);
        v[4] += one, v[0] = one + two;
    }
    for (int i = 0; i < 8; i++) state[i] += v[i];
}

GPT2_SP_LEAF void sha256_begin(sha256_sum* s) {
    // of the square roots of the first eight primes
    static const uint32_t start[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memset(s, 0, sizeof *s);
    memcpy(s->state, start, sizeof start);
}

GPT2_SP_LEAF void sha256_add(sha256_sum* s, const void* data, size_t bytes) {
    const unsigned char* p = (const unsigned char*)data;
    for (size_t i = 0; i < bytes; i++) {
        s->block[s->bytes++ % SHA256_BLOCK] = p[i];
        if (s->bytes % SHA256_BLOCK == 0) sha256_block(s->state, s->block);
    }
}

GPT2_SP_LEAF void sha256_end(sha256_sum* s, unsigned char sum[SHA256_BYTES]) {
    unsigned char bits[8], one = 0x80, zero = 0;
    for (int i = 0; i < 8; i++) bits[i] = (unsigned char)(s->bytes * 8 >> (56 - 8 * i));
    sha256_add(s, &one, 1);
    while (s->bytes % SHA256_BLOCK != SHA256_BLOCK - 8) sha256_add(s, &zero, 1);
    sha256_add(s, bits, 8);
    for (int i = 0; i < SHA256_BYTES; i++) sum[i] = (unsigned char)(s->state[i / 4] >> (24 - 8 * (i % 4)));
}

GPT2_SP_LEAF void sha256_hmac(
    unsigned char sum[SHA256_BYTES], const void* key, size_t key_bytes, const void* text, size_t text_bytes) {
    unsigned char pad[SHA256_BLOCK] = {0};
    sha256_sum s;
    if (key_bytes > SHA256_BLOCK) {   // a long key is its sum
        sha256_begin(&s);
        sha256_add(&s, key, key_bytes);
        sha256_end(&s, pad);
    } else memcpy(pad, key, key_bytes);
    for (int i = 0; i < SHA256_BLOCK; i++) pad[i] ^= 0x36;
    sha256_begin(&s);
    sha256_add(&s, pad, sizeof pad);
    sha256_add(&s, text, text_bytes);
    sha256_end(&s, sum);
    for (int i = 0; i < SHA256_BLOCK; i++) pad[i] ^= 0x36 ^ 0x5c;
    sha256_begin(&s);
    sha256_add(&s, pad, sizeof pad);
    sha256_add(&s, sum, SHA256_BYTES);
    sha256_end(&s, sum);
}

GPT2_SP_LEAF int sha256_equal(const unsigned char* a, const unsigned char* b) {
    unsigned char differ = 0;
    for (int i = 0; i < SHA256_BYTES; i++) differ |= a[i] ^ b[i];
    return differ == 0;
}

#endif   // GPT2_SP_SHA256_H
