// The loops of roofline.cpp, for whatever instructions the including file is compiled for.
//
// All is in an unnamed namespace: a function that two files share would be linked once, perhaps with instructions that
// this machine lacks.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace woqfx::roofline {

// `run` does `operations` operations for each of `count`; what it returns depends on all of them.
struct Loop {
    float (*run)(std::size_t count);
    double operations;
};

struct Loops {
    std::uint64_t (*sum)(const std::uint8_t* data, std::size_t size);
    Loop of[3];  // by Compute
};

const Loops& portable_loops();
const Loops& avx2_loops();
const Loops& avx_vnni_loops();
const Loops& avx512_loops();
const Loops& avx512_vnni_loops();
const Loops& avx512_bf16_loops();
const Loops& amx_loops();

namespace {

// Reads from four places at once, which keeps more requests on their way than one place does, with the compiler's
// vectors, wide enough for any register.
std::uint64_t sum(const std::uint8_t* data, std::size_t size) {
    using Words __attribute__((vector_size(64), aligned(1), may_alias)) = std::uint64_t;
    constexpr std::size_t kPlaces = 4;
    const std::size_t part = size / kPlaces;
    Words sums[kPlaces] = {};
    for (std::size_t at = 0; at + sizeof(Words) <= part; at += sizeof(Words))
        for (std::size_t place = 0; place < kPlaces; ++place)
            sums[place] += *reinterpret_cast<const Words*>(data + place * part + at);
    std::uint64_t total = 0;
    for (const Words& words : sums)
        for (int lane = 0; lane < 8; ++lane) total += words[lane];
    return total;
}

// Multiplies and adds in independent chains: enough of them that no unit ever waits for a result, few enough that all
// stay in registers.
constexpr std::size_t kChains = 12;

template <class Unit>
float chains(std::size_t count) {
    auto a = Unit::ones();
    const auto b = Unit::ones();
    decltype(Unit::zeros()) sums[kChains];
    for (auto& sum : sums) sum = Unit::zeros();
    for (; count; --count)
        for (auto& sum : sums) sum = Unit::add_product(sum, a, b);
    float total = 0;
    for (const auto& sum : sums) total += Unit::first(sum);
    return total;
}

template <class Unit>
constexpr Loop loop{&chains<Unit>, kChains * Unit::operations};

#if defined(__AVX512F__)
struct Fp32 {
    static constexpr double operations = 2 * 16;
    static __m512 zeros() { return _mm512_setzero_ps(); }
    static __m512 ones() { return _mm512_set1_ps(1); }
    static __m512 add_product(__m512 sum, const __m512& a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }
    static float first(__m512 sum) { return _mm512_cvtss_f32(sum); }
};
#elif defined(__AVX2__)
struct Fp32 {
    static constexpr double operations = 2 * 8;
    static __m256 zeros() { return _mm256_setzero_ps(); }
    static __m256 ones() { return _mm256_set1_ps(1); }
    static __m256 add_product(__m256 sum, const __m256& a, __m256 b) { return _mm256_fmadd_ps(a, b, sum); }
    static float first(__m256 sum) { return _mm256_cvtss_f32(sum); }
};
#else
struct Fp32 {
    using Floats __attribute__((vector_size(16))) = float;
    static constexpr double operations = 2 * 4;
    static Floats zeros() { return Floats{}; }
    static Floats ones() { return Floats{} + 1; }
    static Floats add_product(Floats sum, const Floats& a, Floats b) { return sum + a * b; }
    static float first(Floats sum) { return sum[0]; }
};
#endif

#if defined(__AVX512BF16__)
struct Bf16 {
    static constexpr double operations = 2 * 32;
    static __m512 zeros() { return _mm512_setzero_ps(); }
    static __m512bh ones() { return _mm512_cvtne2ps_pbh(_mm512_set1_ps(1), _mm512_set1_ps(1)); }
    static __m512 add_product(__m512 sum, const __m512bh& a, __m512bh b) { return _mm512_dpbf16_ps(sum, a, b); }
    static float first(__m512 sum) { return _mm512_cvtss_f32(sum); }
};
#else
using Bf16 = Fp32;  // operands rounded to bfloat16 are multiplied as float32
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
struct Int8 {
    static constexpr double operations = 2 * 64;
    static __m512i zeros() { return _mm512_setzero_si512(); }
    static __m512i ones() { return _mm512_set1_epi8(1); }
    static __m512i add_product(__m512i sum, __m512i& a, __m512i b) {
#if defined(__AVX512VNNI__)
        return _mm512_dpbusd_epi32(sum, a, b);
#else
        asm("" : "+v"(a));  // else the product is the same each time, and done once
        return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)));
#endif
    }
    static float first(__m512i sum) { return static_cast<float>(_mm512_cvtsi512_si32(sum)); }
};
#elif defined(__AVX2__)
struct Int8 {
    static constexpr double operations = 2 * 32;
    static __m256i zeros() { return _mm256_setzero_si256(); }
    static __m256i ones() { return _mm256_set1_epi8(1); }
    static __m256i add_product(__m256i sum, __m256i& a, __m256i b) {
#if defined(__AVXVNNI__)
        return _mm256_dpbusd_avx_epi32(sum, a, b);
#else
        asm("" : "+x"(a));  // as above
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
#endif
    }
    static float first(__m256i sum) { return static_cast<float>(_mm256_cvtsi256_si32(sum)); }
};
#else
struct Int8 {
    using Ints __attribute__((vector_size(16))) = std::int32_t;
    static constexpr double operations = 2 * 4;
    static Ints zeros() { return Ints{}; }
    static Ints ones() { return Ints{} + 1; }
    static Ints add_product(Ints sum, const Ints& a, Ints b) { return sum + a * b; }
    static float first(Ints sum) { return static_cast<float>(sum[0]); }
};
#endif

constexpr Loops loops{&sum, {loop<Fp32>, loop<Bf16>, loop<Int8>}};

}  // namespace
}  // namespace woqfx::roofline
