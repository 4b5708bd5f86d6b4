// Vectors of 8 lanes: AVX2 with FMA and F16C, and AVX-VNNI.
#pragma once

#include <immintrin.h>

#include "kernel.h"
#include "numbers.h"

namespace {

struct Avx2 {
    static constexpr int kLanes = 8;
    // 6 rows times 2 vectors are 12 sums; with 2 operands and a word that fills the 16 registers.
    static constexpr int kPanels = 4, kPanelRows[kPanels] = {6, 4, 2, 1}, kFewRows = 4, kManyRows = 6;
    static constexpr bool kUnsignedCodes = false, kDecodesBytesFreely = false;

    using F = __m256;
    using I = __m256i;
    using IntSum = int __attribute__((vector_size(32)));  // as in vec_avx512.h
    struct Table {
        F low, high;
    };
    using ByteTable = I;

    static F load(const float* from) { return _mm256_loadu_ps(from); }
    static void store(float* to, F value) { _mm256_storeu_ps(to, value); }
    static I load_words(const void* from) { return _mm256_loadu_si256(static_cast<const I*>(from)); }
    static void store_words(void* to, I value) { _mm256_storeu_si256(static_cast<I*>(to), value); }
    static I load_bytes(const std::uint8_t* from) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    }
    static F load_scales(const std::uint8_t* from, woqfx::Float type, std::size_t lane) {
        if (type == woqfx::Float::f32) return load(reinterpret_cast<const float*>(from) + lane);
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * lane));
        if (type == woqfx::Float::f16) return _mm256_cvtph_ps(halves);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
    static F set(float value) { return _mm256_set1_ps(value); }
    static I set(std::uint32_t word) { return _mm256_set1_epi32(static_cast<int>(word)); }
    static F as_float(I bits) { return _mm256_castsi256_ps(bits); }
    static IntSum as_sum(I words) { return reinterpret_cast<IntSum>(words); }
    static F to_float(IntSum value) { return to_float(reinterpret_cast<I>(value)); }
    static F to_float(I value) { return _mm256_cvtepi32_ps(value); }
    static F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
    static I multiply(I a, I b) { return _mm256_mullo_epi32(a, b); }
    static I subtract(I a, I b) { return _mm256_sub_epi32(a, b); }
    static I flip(I a, I b) { return _mm256_xor_si256(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

    static Table load_table(const std::uint32_t* entries) {
        return {as_float(load_words(entries)), as_float(load_words(entries + 8))};
    }
    static ByteTable load_byte_table(const std::uint32_t* entries) {
        alignas(16) std::uint8_t bytes[16];
        for (int i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>(entries[i]);
        return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
    }

    // The look-up has 8 entries and reads 3 bits of an index: one in each half of the table, then bit 3 chooses.
    template <int kShift>
    static F lookup(const Table& table, I words) {
        const I index = _mm256_srli_epi32(words, kShift);
        const F chooser = as_float(_mm256_slli_epi32(words, 28 - kShift));
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, index),
                                _mm256_permutevar8x32_ps(table.high, index), chooser);
    }
    // 2^23 + byte is 0x4b000000 | byte; less 2^23 + origin.
    template <int kShift>
    static F byte_value(I words, F origin) {
        const I byte = _mm256_and_si256(_mm256_srli_epi32(words, kShift), set(0xffu));
        const F value = as_float(_mm256_or_si256(byte, set(0x4b000000u)));
        return _mm256_sub_ps(value, _mm256_add_ps(origin, set(0x1p23f)));
    }
    template <int kShift>
    static I lookup_bytes(const ByteTable& table, I words) {
        return _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(words, kShift), set(0x0f0f0f0fu)));
    }
    // The instruction takes unsigned times signed bytes and saturates pairs at 2^15: |a| is at most 128 and |b| 127, so
    // that |a| * (b with a's sign) never does.
    static IntSum dot_int8(IntSum sum, I a, I b) {
        const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
        return sum + as_sum(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

#if defined(__AVXVNNI__)
struct AvxVnni : Avx2 {
    static constexpr bool kUnsignedCodes = true;
    static IntSum dot_int8(IntSum sum, I a, I b) {
        return as_sum(_mm256_dpbusd_avx_epi32(reinterpret_cast<I>(sum), a, b));
    }
};
#endif

}  // namespace
