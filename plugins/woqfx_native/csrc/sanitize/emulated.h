// Instructions that few CPUs have, in plain C++: those of AVX-VNNI and AMX that kernels use. Included before the files
// of these instruction sets, where the sanitizers' programs are built, so that what they compute, and each byte that
// they read, is tested on any CPU with AVX-512. After Intel's manual of instructions; what faults there ends the program here.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace woqfx::emulated {

inline void require(bool legal, const char* what) {
    if (legal) return;
    std::fprintf(stderr, "an instruction would fault: %s\n", what);
    std::abort();
}

// Four products of an unsigned and a signed byte onto each sum of 32 bits.
inline __m256i dpbusd(__m256i sums, __m256i a, __m256i b) {
    std::int32_t sum[8];
    std::uint8_t x[32];
    std::int8_t y[32];
    std::memcpy(sum, &sums, 32), std::memcpy(x, &a, 32), std::memcpy(y, &b, 32);
    for (int i = 0; i < 32; ++i) sum[i / 4] += x[i] * y[i];
    std::memcpy(&sums, sum, 32);
    return sums;
}

struct Tile {
    std::size_t rows = 0, row_bytes = 0;
    std::uint8_t bytes[16][64] = {};
};

inline thread_local Tile tiles[8];

inline void load_config(const void* from) {
    std::uint8_t config[64];
    std::memcpy(config, from, sizeof config);
    require(config[0] == 1, "the palette");
    for (int i = 0; i < 8; ++i) {
        std::uint16_t row_bytes;
        std::memcpy(&row_bytes, config + 16 + 2 * i, 2);
        require(row_bytes <= 64 && config[48 + i] <= 16, "a tile's shape");
        tiles[i] = {config[48 + i], row_bytes, {}};
    }
}

inline void release() {
    for (Tile& tile : tiles) tile = {};
}

inline Tile& used(int number) {
    require(tiles[number].rows && tiles[number].row_bytes, "a tile without a shape");
    return tiles[number];
}

inline void load(int number, const void* from, std::size_t distance) {
    Tile& tile = used(number);
    tile = {tile.rows, tile.row_bytes, {}};
    for (std::size_t r = 0; r < tile.rows; ++r)
        std::memcpy(tile.bytes[r], static_cast<const std::uint8_t*>(from) + r * distance, tile.row_bytes);
}

inline void store(int number, void* to, std::size_t distance) {
    const Tile& tile = used(number);
    for (std::size_t r = 0; r < tile.rows; ++r)
        std::memcpy(static_cast<std::uint8_t*>(to) + r * distance, tile.bytes[r], tile.row_bytes);
}

inline void zero(int number) { tiles[number] = {used(number).rows, used(number).row_bytes, {}}; }

template <class T>
T element(const Tile& tile, std::size_t row, std::size_t at) {
    T value;
    std::memcpy(&value, tile.bytes[row] + at * sizeof(T), sizeof(T));
    return value;
}

// `onto` += a b, whose elements of type A and B lie in words of 4 bytes: a row of `a` is a row of words, and so many words
// deep `b` is.
template <class Sum, class A, class B>
void multiply(int onto, int left, int right) {
    constexpr std::size_t kElements = 4 / sizeof(A);
    Tile& c = used(onto);
    const Tile &a = used(left), &b = used(right);
    require(a.rows == c.rows && b.row_bytes == c.row_bytes && b.rows * 4 == a.row_bytes && a.row_bytes % 4 == 0 &&
                c.row_bytes % 4 == 0 && onto != left && onto != right && left != right,
            "shapes of a product");
    for (std::size_t m = 0; m < c.rows; ++m) {
        for (std::size_t n = 0; n < c.row_bytes / 4; ++n) {
            Sum sum = element<Sum>(c, m, n);
            for (std::size_t i = 0; i < a.row_bytes / 4 * kElements; ++i) {
                const Sum x = element<A>(a, m, i);
                sum += x * static_cast<Sum>(element<B>(b, i / kElements, n * kElements + i % kElements));
            }
            std::memcpy(c.bytes[m] + n * 4, &sum, 4);
        }
    }
}

struct Bf16 {
    std::uint16_t bits;
    operator float() const {
        const std::uint32_t word = std::uint32_t{bits} << 16;
        float value;
        std::memcpy(&value, &word, 4);
        return value;
    }
};

}  // namespace woqfx::emulated

#undef _mm256_dpbusd_avx_epi32
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _mm256_dpbusd_avx_epi32(sums, a, b) woqfx::emulated::dpbusd(sums, a, b)
#define _tile_loadconfig(from) woqfx::emulated::load_config(from)
#define _tile_release() woqfx::emulated::release()
#define _tile_loadd(tile, from, distance) woqfx::emulated::load(tile, from, distance)
#define _tile_stored(tile, to, distance) woqfx::emulated::store(tile, to, distance)
#define _tile_zero(tile) woqfx::emulated::zero(tile)
#define _tile_dpbsud(c, a, b) woqfx::emulated::multiply<std::int32_t, std::int8_t, std::uint8_t>(c, a, b)
#define _tile_dpbusd(c, a, b) woqfx::emulated::multiply<std::int32_t, std::uint8_t, std::int8_t>(c, a, b)
#define _tile_dpbf16ps(c, a, b) woqfx::emulated::multiply<float, woqfx::emulated::Bf16, woqfx::emulated::Bf16>(c, a, b)
