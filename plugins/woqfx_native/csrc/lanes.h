// Vectors as wide as the registers of the instruction set that the including file is compiled for.
//
// They are the compiler's own; only table look-ups need an instruction by name. All is in an unnamed namespace, and
// nothing of the standard library is instantiated: a function that two files share would be linked once, perhaps with
// instructions that this machine lacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace woqfx::encode {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t kRegister = 64;
#elif defined(__AVX2__)
constexpr std::size_t kRegister = 32;
#else
constexpr std::size_t kRegister = 16;
#endif
constexpr std::size_t kLanes = kRegister / sizeof(float);

using Floats __attribute__((vector_size(kRegister))) = float;
using Ints __attribute__((vector_size(kRegister))) = std::int32_t;

template <class Vector>
inline Vector load(const void* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class Vector>
inline void store(void* to, Vector v) {
    std::memcpy(to, &v, sizeof v);
}

inline Floats splat(float x) { return x - Floats{}; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Ints magnitude(Floats x) { return reinterpret_cast<Ints>(x) & 0x7fffffff; }

// Half to even for |x| below 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. Larger numbers keep their sign and
// stay large, which is enough for what is clamped afterwards.
constexpr float kNoFraction = 12582912.0f;
inline float rounded(float x) { return (x + kNoFraction) - kNoFraction; }
inline Floats rounded(Floats x) { return (x + kNoFraction) - kNoFraction; }

// Fold lanes into one number by halves: of 16, 0 to 7 with 8 to 15, and so on.
template <class Vector, class Combine>
inline auto fold_lanes(Vector v, Combine combine) {
    if constexpr (sizeof v == 64) {
        return fold_lanes(combine(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)),
                          combine);
    } else if constexpr (sizeof v == 32) {
        return fold_lanes(
            combine(__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7)), combine);
    } else {
        const auto pair = combine(v, __builtin_shufflevector(v, v, 2, 3, 2, 3));
        return combine(pair, __builtin_shufflevector(pair, pair, 1, 1, 1, 1))[0];
    }
}

// The sum of x[0..n) as woqfx/sums.py defines it. Overwrites x.
inline float sum_by_halves(float* x, std::size_t n) {
    while (n > 1) {
        if (n == kLanes) return fold_lanes(load<Floats>(x), [](auto a, auto b) { return a + b; });
        const std::size_t half = (n + 1) / 2;
        for (std::size_t i = 0; i < n - half; ++i) x[i] += x[i + half];
        n = half;
    }
    return x[0];
}

// table[index], for indices 0 to 15.
inline Floats lookup(const float* table, Ints index) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(
            _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), _mm512_load_ps(table)));
#elif defined(__AVX2__)
    const __m256 low = _mm256_load_ps(table), high = _mm256_load_ps(table + 8);
    // Each permutation reads three bits of an index; the fourth, moved to the sign, chooses between them.
    const auto i = reinterpret_cast<__m256i>(index);
    const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
    return reinterpret_cast<Floats>(
            _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(high, i), fourth));
#else
    Floats found;
    for (std::size_t i = 0; i < kLanes; ++i) found[i] = table[index[i]];
    return found;
#endif
}

}  // namespace
}  // namespace woqfx::encode
