// Many rows by tile registers: AMX-INT8 and AMX-BF16.
//
// A tile register holds 16 rows of 64 bytes. One product takes 16 rows of 16 words of activations and 16 words
// of 16 outputs, which is how decoded operands lie anyway; its sums are 16 rows of 16 outputs.
// A block ends with its sums in memory, where vectors scale them and add them to the totals.
#pragma once

#include <immintrin.h>

#include "arithmetic.h"
#include "multiply.h"
#include "vec_avx512.h"

namespace {

// Registers 0 and 1: sums of a tile's 32 outputs. 2: activations, 3 and 4: operands, 16 words deep. 5, 6 and 7: the
// same for the words that are left at the end of a block.
struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    TileShapes(std::size_t panel_rows, std::size_t words) {
        const auto rest = static_cast<std::uint16_t>(words % 16 ? words % 16 : 16);
        for (const int i : {0, 1, 2, 5}) rows[i] = static_cast<std::uint8_t>(panel_rows);
        for (const int i : {3, 4}) rows[i] = 16;
        for (const int i : {6, 7}) rows[i] = static_cast<std::uint8_t>(rest);
        for (const int i : {0, 1, 2, 3, 4, 6, 7}) row_bytes[i] = 64;
        row_bytes[5] = static_cast<std::uint16_t>(rest * 4);
    }
};
static_assert(sizeof(TileShapes) == 64);

struct AmxInt8 : Int8<Avx512Vnni> {  // signed activations times unsigned codes
    static constexpr bool kDecodesAside = true;
    static void multiply() {
        _tile_dpbsud(0, 2, 3);
        _tile_dpbsud(1, 2, 4);
    }
    static void multiply_rest() {
        _tile_dpbsud(0, 5, 6);
        _tile_dpbsud(1, 5, 7);
    }
    static Sum load_sum(const void* from) { return V::as_sum(V::load_words(from)); }
};

struct AmxBf16 : Bf16<Avx512Bf16> {
    static void multiply() {
        _tile_dpbf16ps(0, 2, 3);
        _tile_dpbf16ps(1, 2, 4);
    }
    static void multiply_rest() {
        _tile_dpbf16ps(0, 5, 6);
        _tile_dpbf16ps(1, 5, 7);
    }
    static Sum load_sum(const void* from) { return V::load(static_cast<const float*>(from)); }
};

// Blocks [begin, end) of up to 16 rows times a tile of outputs, onto totals[r * 32 + lane].
template <class A>
void tile_panel(const Product& p, const Panel& x, std::size_t tile, std::size_t begin, std::size_t end,
                const std::uint8_t* operands, float* totals) {
    using V = typename A::V;
    const woqfx::Layout& l = *p.layout;
    const auto rows = static_cast<std::size_t>(x.rows);
    const std::size_t block_words = l.block_steps * A::kOperands;
    constexpr std::size_t kRow = kTile * 4;  // bytes of one word of all outputs
    alignas(64) std::uint8_t sums[16 * kRow];
    std::size_t shaped = 0;
    for (std::size_t b = begin; b < end; ++b, operands += block_words * kRow) {
        const std::size_t words = l.steps_of(b) * A::kOperands;
        if (words != shaped) {
            const TileShapes shapes(rows, words);
            asm volatile("" ::: "memory");  // GCC's tile loads do not say that they read memory
            _tile_loadconfig(&shapes);
            shaped = words;
        }
        const std::uint32_t* activations = x.words + b * block_words;
        const std::uint8_t* from = operands;
        const std::size_t distance = x.row_words * 4;
        _tile_zero(0);
        _tile_zero(1);
        std::size_t left = words;
        for (; left >= 16; left -= 16, activations += 16, from += 16 * kRow) {
            _tile_loadd(2, activations, distance);
            _tile_loadd(3, from, kRow);
            _tile_loadd(4, from + 64, kRow);
            A::multiply();
        }
        if (left) {
            _tile_loadd(5, activations, distance);
            _tile_loadd(6, from, kRow);
            _tile_loadd(7, from + 64, kRow);
            A::multiply_rest();
        }
        _tile_stored(0, sums, kRow);
        _tile_stored(1, sums + 64, kRow);

        const std::uint8_t* record = p.weight + l.record_at(tile, b);
        for (std::size_t lane = 0; lane < kTile; lane += V::kLanes) {
            const typename V::F scale = V::load_scales(record, l.scale_type, lane);
            const typename V::I origin = V::set(static_cast<std::uint32_t>(p.operands->origin));
            const bool zeros = l.origin == woqfx::Origin::zeros, offsets = l.origin == woqfx::Origin::offsets;
            const typename V::I shift =
                zeros ? V::subtract(origin, V::load_bytes(record + l.origins_at + lane)) : origin;
            const std::uint32_t* const block = x.words + x.blocks_at + b * kBlockWords;
            for (std::size_t r = 0; r < rows; ++r) {
                const typename V::I start = V::set(offsets ? 0 : block[r * x.row_words]);
                const typename A::Sum sum = A::load_sum(sums + r * kRow + lane * 4) +
                                            (zeros ? A::start(shift, start) : A::from_words(start));
                float* total = totals + r * kTile + lane;
                const float step = float_of(block[r * x.row_words + kStepOfBlock]);
                V::store(total, A::finish(V::load(total), sum, scale, step));
            }
            if (!offsets) continue;
            const typename V::F offset = offset_of_origin<V>(p, record, lane, scale);
            for (std::size_t r = 0; r < rows; ++r) {
                float* total = totals + r * kTile + lane;
                V::store(total, V::fma(offset, V::set(float_of(block[r * x.row_words])), V::load(total)));
            }
        }
    }
}

template <class A>
void multiply_by_tiles(const Product& p, std::size_t begin, std::size_t end, std::uint8_t* scratch) {
    if (!p.by_tiles) return multiply<A>(p, begin, end, scratch);
    for (std::size_t tile = begin; tile < end; ++tile)
        p.layout->stored_bits == 4 ? many_rows<A, 4>(p, tile, scratch, tile_panel<A>)
                                   : many_rows<A, 8>(p, tile, scratch, tile_panel<A>);
    _tile_release();  // else the system saves and restores 8 KiB more at each switch of threads
}

// `rows_from`: with fewer rows, the vector kernel of the same arithmetic.
template <class A>
constexpr woqfx::Kernel tile_kernel(const char* label, std::size_t rows_from) {
    woqfx::Kernel made = kernel<A>(label);
    made.multiply = multiply_by_tiles<A>;
    made.tiles_from = rows_from;
    return made;
}

}  // namespace
