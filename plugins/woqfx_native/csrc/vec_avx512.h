// Vectors of 16 lanes: AVX-512 F, BW, DQ and VL, with VNNI and BF16 where they are.
#pragma once

#include <immintrin.h>

#include "kernel.h"
#include "numbers.h"

namespace {

struct Avx512 {
    static constexpr int kLanes = 16;
    // Of many, 6 rows times 2 vectors: 12 sums and 12 totals of the 32 registers.
    static constexpr int kPanels = 5, kPanelRows[kPanels] = {8, 6, 4, 2, 1}, kFewRows = 8, kManyRows = 6;
    static constexpr bool kUnsignedCodes = false, kDecodesBytesFreely = false;

    using F = __m512;
    using I = __m512i;
    using IntSum = int __attribute__((vector_size(64)));  // __m512i is 8 longs: GCC 12 copies and spills such sums
    using Table = __m512;
    using PairTable = __m512i;
    using ByteTable = __m512i;

    static F load(const float* from) { return _mm512_loadu_ps(from); }
    static void store(float* to, F value) { _mm512_storeu_ps(to, value); }
    static I load_words(const void* from) { return _mm512_loadu_si512(from); }
    static void store_words(void* to, I value) { _mm512_storeu_si512(to, value); }
    static I load_bytes(const std::uint8_t* from) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static F load_scales(const std::uint8_t* from, woqfx::Float type, std::size_t lane) {
        if (type == woqfx::Float::f32) return load(reinterpret_cast<const float*>(from) + lane);
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2 * lane));
        if (type == woqfx::Float::f16) return _mm512_cvtph_ps(halves);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
    static F set(float value) { return _mm512_set1_ps(value); }
    static I set(std::uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
    static F as_float(I bits) { return _mm512_castsi512_ps(bits); }
    static IntSum as_sum(I words) { return reinterpret_cast<IntSum>(words); }
    static F to_float(IntSum value) { return to_float(reinterpret_cast<I>(value)); }
    static F to_float(I value) { return _mm512_cvtepi32_ps(value); }
    static F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
    static I multiply(I a, I b) { return _mm512_mullo_epi32(a, b); }
    static I subtract(I a, I b) { return _mm512_sub_epi32(a, b); }
    static I flip(I a, I b) { return _mm512_xor_si512(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

    static Table load_table(const std::uint32_t* entries) { return as_float(load_words(entries)); }
    static PairTable load_pair_table(const std::uint32_t* entries) {
        const __m256i words = _mm512_cvtepi32_epi16(load_words(entries));
        return _mm512_inserti64x4(_mm512_castsi256_si512(words), words, 1);
    }
    static ByteTable load_byte_table(const std::uint32_t* entries) {
        return _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(load_words(entries)));
    }

    // vpermps reads the low 4 bits of each index: the nibble needs no mask.
    template <int kShift>
    static F lookup(Table table, I words) {
        return _mm512_permutexvar_ps(_mm512_srli_epi32(words, kShift), table);
    }
    // vpermw reads the low 5 bits of each index: a table that is there twice makes the fifth harmless.
    template <int kShift>
    static I lookup_pair(PairTable table, I words) {
        return _mm512_permutexvar_epi16(_mm512_srli_epi32(words, kShift), table);
    }
    // 2^23 + byte is the byte in the lowest place of 0x4b000000, 2^15 + byte in the second of 0x47000000: bytes 0 and 1
    // need no shift, 2 and 3 share one. The choice between bytes runs on more units than a logical operation of three.
    template <int kShift>
    static F byte_value(I words, F origin) {
        if constexpr (kShift >= 16) {
            return byte_value<kShift - 16>(_mm512_srli_epi32(words, 16), origin);
        } else if constexpr (kShift == 0) {
            const I value = _mm512_mask_blend_epi8(0x1111111111111111, set(0x4b000000u), words);
            return _mm512_sub_ps(as_float(value), _mm512_add_ps(origin, set(0x1p23f)));
        } else {
            const I value = _mm512_mask_blend_epi8(0x2222222222222222, set(0x47000000u), words);
            return _mm512_sub_ps(as_float(value), _mm512_add_ps(origin, set(0x1p15f)));
        }
    }
    template <int kShift>
    static I lookup_bytes(ByteTable table, I words) {
        return _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32(words, kShift), set(0x0f0f0f0fu)));
    }
    // Two float32 that are bfloat16 values, as a pair of bfloat16.
    static I upper_halves(F low, F high) {
        return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low), 16), _mm512_castps_si512(high));
    }
    // As in vec_avx2.h; AVX-512 has no sign instruction.
    static IntSum dot_int8(IntSum sum, I a, I b) {
        const I signed_b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
        const I pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(a), signed_b);
        return sum + as_sum(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
};

#if defined(__AVX512VNNI__)
struct Avx512Vnni : Avx512 {
    static constexpr bool kUnsignedCodes = true;
    static constexpr bool kDecodesBytesFreely = true;  // on units that products leave idle
    static IntSum dot_int8(IntSum sum, I a, I b) {
        return as_sum(_mm512_dpbusd_epi32(reinterpret_cast<I>(sum), a, b));
    }
};
#endif

#if defined(__AVX512BF16__)
struct Avx512Bf16 : Avx512Vnni {
    static F dot_bf16(F sum, I a, I b) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
};
#endif

}  // namespace
