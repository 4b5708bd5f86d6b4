// The kernels: one loop for every compute dtype, instruction set, number of bits and of rows.
//
// An arithmetic (arithmetic.h) says what a word of activations holds, how codes become operands, and how the two are
// multiplied. Lanes are outputs; a word of activations goes to all lanes. Every path adds the same numbers in the same
// order to the same accumulator, so that a row's result depends on nothing but the row:
//
//     for each block:   sum = (origin - zero) * (sum of the activations)
//                       for each word of the block, in order:   sum += operand * word
//                       total += sum * (scale * step)
//
// With offsets in place of zeros, sum = 0, and total += (offset + origin * scale) * (sum of the activations) in the end.
//
// For few rows, codes are decoded in registers, just before they are multiplied: one pass over the weight's memory. For
// many, a stretch of a tile is decoded once, into the cache, and multiplied by one panel of rows after the other; where
// decoding costs nothing beside the products (kDecodesAside), a tile is multiplied, as it is, by one panel after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernel.h"
#include "lane_params.h"
#include "numbers.h"
#include "prepare.h"
#include "unroll.h"

namespace {

using woqfx::kTile;
using woqfx::Panel;
using woqfx::Product;

constexpr std::size_t kBlockWords = sizeof(woqfx::BlockOfRow) / 4;
constexpr std::size_t kStepOfBlock = offsetof(woqfx::BlockOfRow, step) / 4;

// Where C vectors of outputs, side by side, begin: for each its tile's record of block 0, and its first lane.
template <class V, int C>
struct Strip {
    const std::uint8_t* records[C];
    std::size_t lanes[C];

    Strip(const Product& p, std::size_t tile, std::size_t lane) {
        for (int c = 0; c < C; ++c, lane += V::kLanes) {
            records[c] = p.weight + p.layout->record_at(tile + lane / kTile, 0);
            lanes[c] = lane % kTile;
        }
    }
};

// Codes as they are in memory, decoded on the way, and fetched kAhead bytes before: every line, those of scales too. One
// line of nine left out costs more than all the others gain.
template <class A, int kBits, int C, std::size_t kAhead = 0>
struct Packed {
    using V = typename A::V;
    static constexpr int kOperands = A::kOperands;
    typename A::template Decoder<kBits> decoder;
    const Strip<V, C>& strip;
    std::size_t codes_at, record_bytes;
    const std::uint8_t* from[C];
    typename V::I words[C][kBits / 4];

    Packed(const Product& p, const Strip<V, C>& s)
        : decoder(*p.operands), strip(s), codes_at(p.layout->codes_at), record_bytes(p.layout->record_bytes) {}

    void block(std::size_t b) {
        unroll<C>([&](auto c) {
            const std::uint8_t* const record = strip.records[c] + b * record_bytes;
            from[c] = record + codes_at + strip.lanes[c] * 4;
            if constexpr (kFetches<c>)
                for (std::size_t at = 0; at < codes_at; at += kLine) fetch(record + at);
        });
    }
    void load() {
        unroll<C>([&](auto c) {
            unroll<kBits / 4>([&](auto j) {
                const std::uint8_t* const word = from[c] + j * int{kTile} * 4;
                words[c][j] = V::load_words(word);
                if constexpr (kFetches<c>) unroll<kTileWords / kLine>([&](auto i) { fetch(word + i * kLine); });
            });
        });
    }
    void advance() {
        unroll<C>([&](auto c) { from[c] += kTile * kBits; });
    }
    template <int kOperand>
    typename A::Operand operand(int c) const {
        return decoder.template operand<kOperand>(words[c]);
    }

private:
    static constexpr int kLine = 64, kTileWords = int{kTile} * 4;
    template <int c>  // once for a tile
    static constexpr bool kFetches = kAhead > 0 && c * V::kLanes % int{kTile} == 0;

    static void fetch(const std::uint8_t* line) { __builtin_prefetch(line + kAhead, 0, A::kAheadInto); }
};

// Codes decoded before: operand i of a lane is word i * 32 + lane.
template <class A, int C>
struct Decoded {
    using V = typename A::V;
    static constexpr int kOperands = 2;  // at a time; a step has this many or a multiple
    const std::uint8_t* first;
    std::size_t first_block, block_bytes;
    const std::uint8_t* from = nullptr;

    void block(std::size_t b) { from = first + (b - first_block) * block_bytes; }
    void load() {}
    void advance() { from += kOperands * kTile * 4; }
    template <int kOperand>
    typename A::Operand operand(int c) const {
        return A::load(from + (kOperand * int{kTile} + c * V::kLanes) * 4);
    }
};

// The weights that operand 0 stands for, where groups have offsets.
template <class V>
typename V::F offset_of_origin(const Product& p, const std::uint8_t* record, std::size_t lane, typename V::F scale) {
    const typename V::F origin = V::set(static_cast<float>(p.operands->origin));
    return V::fma(origin, scale, V::load_scales(record + p.layout->origins_at, p.layout->scale_type, lane));
}

// Blocks [begin, end) of R rows times C vectors of outputs, onto totals[r * stride + lane]. Meanwhile totals are in
// registers, beside the sums, if there are enough of them: short groups cost no more loads and stores than long ones.
template <class A, int C, int R, class Codes>
[[gnu::flatten]] void multiply_blocks(const Product& p, const Panel& x, const Strip<typename A::V, C>& strip,
                                      Codes codes, std::size_t begin, std::size_t end, float* totals,
                                      std::size_t stride) {
    using V = typename A::V;
    const woqfx::Layout& l = *p.layout;
    const woqfx::Origin origins = l.origin;
    const woqfx::Float scale_type = l.scale_type;
    const std::uint32_t* words = x.words + begin * l.block_steps * A::kOperands;
    const std::uint32_t* blocks = x.words + x.blocks_at + begin * kBlockWords;
    const std::size_t row = x.row_words;
    typename V::F sofar[C * R];
    unroll<C>([&](auto c) {
        unroll<R>([&](auto r) { sofar[c * R + r] = V::load(totals + r * stride + c * V::kLanes); });
    });
    for (std::size_t b = begin; b < end; ++b, blocks += kBlockWords) {
        // Loops over sums are unrolled here, by hand: compilers then keep all of them in registers.
        typename A::Sum sums[C * R];
        unroll<C>([&](auto c) {
            if (origins != woqfx::Origin::zeros) {
                const bool apart = origins == woqfx::Origin::offsets;
                unroll<R>([&](auto r) { sums[c * R + r] = A::from_words(V::set(apart ? 0 : blocks[r * row])); });
                return;
            }
            const typename V::I origin = V::set(static_cast<std::uint32_t>(p.operands->origin));
            const std::uint8_t* zeros = strip.records[c] + b * l.record_bytes + l.origins_at + strip.lanes[c];
            const typename V::I shift = V::subtract(origin, V::load_bytes(zeros));
            unroll<R>([&](auto r) { sums[c * R + r] = A::start(shift, V::set(blocks[r * row])); });
        });
        codes.block(b);
        std::size_t left = l.steps_of(b) * (A::kOperands / Codes::kOperands);
        do {
            codes.load();
            unroll<Codes::kOperands>([&](auto i) {
                typename A::Operand operands[C];
                unroll<C>([&](auto c) { operands[c] = codes.template operand<i>(c); });
                unroll<R>([&](auto r) {
                    const typename A::Operand word = A::broadcast(words[r * row + i]);
                    unroll<C>([&](auto c) {
                        sums[c * R + r] = A::add_product(sums[c * R + r], operands[c], word);
                    });
                });
            });
            codes.advance();
            words += Codes::kOperands;
            asm volatile("" ::: "memory");  // loads stay in their step: moved, they would take the sums' registers
        } while (--left);
        unroll<C>([&](auto c) {
            const std::uint8_t* record = strip.records[c] + b * l.record_bytes;
            const typename V::F scale = V::load_scales(record, scale_type, strip.lanes[c]);
            unroll<R>([&](auto r) {
                const float step = float_of(blocks[r * row + kStepOfBlock]);
                sofar[c * R + r] = A::finish(sofar[c * R + r], sums[c * R + r], scale, step);
            });
            if (origins != woqfx::Origin::offsets) return;
            const typename V::F offset = offset_of_origin<V>(p, record, strip.lanes[c], scale);
            unroll<R>([&](auto r) {
                sofar[c * R + r] = V::fma(offset, V::set(float_of(blocks[r * row])), sofar[c * R + r]);
            });
        });
    }
    unroll<C>([&](auto c) {
        unroll<R>([&](auto r) { V::store(totals + r * stride + c * V::kLanes, sofar[c * R + r]); });
    });
}

// LLM.int8(): what was left out, times the dequantized weight.
[[gnu::noinline]] void add_outliers(const Product& p, std::size_t row, std::size_t tile, std::size_t lane,
                                    std::size_t width, float* totals) {
    const woqfx::Layout& l = *p.layout;
    for (std::size_t i = p.outlier_begin[row]; i < p.outlier_begin[row + 1]; ++i) {
        const std::size_t b = p.outliers[i].column / l.block, o = p.outliers[i].column % l.block;
        for (std::size_t j = 0; j < width; ++j) {
            const std::uint8_t* record = p.weight + l.record_at(tile + (lane + j) / kTile, b);
            const std::size_t at = (lane + j) % kTile;
            const std::uint8_t* step = record + l.codes_at + o / 8 * l.step_bytes + at * 4 + o % 4;
            const unsigned code = l.stored_bits == 4 ? *step >> (o % 8 / 4 * 4) & 15u : step[o % 8 / 4 * kTile * 4];
            const LaneParams group(l, record, at);
            const float value = l.level_count ? l.levels[code] : static_cast<float>(code);
            totals[j] += ((value - group.zero) * group.scale + group.offset) * p.outliers[i].value;
        }
    }
}

// In pieces of a known size: one of an unknown size becomes a string instruction, which takes longer to begin than to copy.
inline void copy_floats(float* to, const float* from, std::size_t count) {
    for (; count >= 16; count -= 16, to += 16, from += 16) std::memcpy(to, from, 64);
    for (; count; --count) std::memcpy(to++, from++, 4);
}

// The totals of a panel's rows, `width` of them from this lane of this tile on, to their places in the result.
[[gnu::noinline]] void store_totals(const Product& p, const Panel& x, std::size_t tile, std::size_t lane,
                                    std::size_t width, float* totals, std::size_t stride) {
    const std::size_t column = tile * kTile + lane;
    if (column >= p.layout->n) return;
    if (width > p.layout->n - column) width = p.layout->n - column;
    for (int r = 0; r < x.used; ++r, totals += stride) {
        const std::size_t row = x.first + static_cast<std::size_t>(r);
        if (p.outlier_begin) add_outliers(p, row - p.first_row, tile, lane, width, totals);
        if (p.bias)
            for (std::size_t j = 0; j < width; ++j) totals[j] += p.bias[column + j];
        const std::size_t at = row * p.y_stride + column;
        if (p.y_type == woqfx::Float::f32) {
            copy_floats(static_cast<float*>(p.y) + at, totals, width);
        } else {
            auto* halves = static_cast<std::uint16_t*>(p.y) + at;
            const bool f16 = p.y_type == woqfx::Float::f16;
            for (std::size_t j = 0; j < width; ++j) halves[j] = f16 ? to_f16(totals[j]) : to_bf16(totals[j]);
        }
    }
}

template <class A, int kBits, int C, int R>
void few_rows_strip(const Product& p, const Panel& x, std::size_t tile, std::size_t lane) {
    using V = typename A::V;
    constexpr std::size_t kWidth = C * V::kLanes;
    alignas(64) float totals[R * kWidth] = {};
    const Strip<V, C> strip(p, tile, lane);
    const Packed<A, kBits, C, A::ahead(kBits, R)> codes(p, strip);
    multiply_blocks<A, C, R>(p, x, strip, codes, 0, p.layout->blocks, totals, kWidth);
    store_totals(p, x, tile, lane, kWidth, totals, kWidth);
}

template <class A, int kBits, int R>
void few_rows(const Product& p, const Panel& x, std::size_t begin, std::size_t end) {
    constexpr std::size_t kLanes = A::V::kLanes;
    constexpr int kTileVectors = static_cast<int>(kTile / kLanes), kMost = A::kTilesAtOnce * kTileVectors;
    constexpr int kWide = R > 2 ? 2 : kMost < 4 ? kMost : 4, kNarrow = kWide < kTileVectors ? kWide : kTileVectors;
    std::size_t tile = begin;
    if constexpr (kWide > kNarrow)  // two tiles
        for (; tile + 1 < end; tile += 2) few_rows_strip<A, kBits, kWide, R>(p, x, tile, 0);
    for (; tile < end; ++tile)
        for (std::size_t lane = 0; lane < kTile; lane += kNarrow * kLanes)
            few_rows_strip<A, kBits, kNarrow, R>(p, x, tile, lane);
}

constexpr std::size_t kDecodedBytes = 64 << 10;  // of a tile: a quarter of a small L2 cache

template <class A>
std::size_t decoded_block_bytes(const woqfx::Layout& l) {
    return l.block_steps * A::kOperands * kTile * 4;
}

template <class A>
std::size_t decoded_blocks(const woqfx::Layout& l) {
    const std::size_t fit = kDecodedBytes / decoded_block_bytes<A>(l);
    return fit < 1 ? 1 : fit < l.blocks ? fit : l.blocks;
}

inline std::size_t padded_rows(const Product& p) {
    std::size_t rows = 0;
    for (std::size_t i = 0; i < p.panel_count; ++i) rows += static_cast<std::size_t>(p.panels[i].rows);
    return rows;
}

template <class A>
std::size_t scratch_bytes(const Product& p) {
    if constexpr (!A::kDecodesAside) return 0;
    return padded_rows(p) * kTile * 4 + decoded_blocks<A>(*p.layout) * decoded_block_bytes<A>(*p.layout);
}

template <class A, int kBits>
void decode(const Product& p, std::size_t tile, std::size_t begin, std::size_t end, std::uint8_t* to) {
    using V = typename A::V;
    constexpr int C = kTile / V::kLanes < 4 ? kTile / V::kLanes : 4;
    for (std::size_t lane = 0; lane < kTile; lane += C * V::kLanes) {
        const Strip<V, C> strip(p, tile, lane);
        Packed<A, kBits, C> codes(p, strip);
        for (std::size_t b = begin; b < end; ++b) {
            codes.block(b);
            std::uint8_t* out = to + (b - begin) * decoded_block_bytes<A>(*p.layout) + lane * 4;
            for (std::size_t steps = p.layout->steps_of(b); steps; --steps, out += A::kOperands * kTile * 4) {
                codes.load();
                unroll<A::kOperands>([&](auto i) {
                    for (int c = 0; c < C; ++c)
                        A::store(out + (i * int{kTile} + c * V::kLanes) * 4, codes.template operand<i>(c));
                });
                codes.advance();
            }
        }
    }
}

template <class A, int R>
void decoded_panel_of(const Product& p, const Panel& x, std::size_t tile, std::size_t begin, std::size_t end,
                      const std::uint8_t* operands, float* totals) {
    using V = typename A::V;
    constexpr int C = 2;
    for (std::size_t lane = 0; lane < kTile; lane += C * V::kLanes) {
        const Strip<V, C> strip(p, tile, lane);
        const Decoded<A, C> codes{operands + lane * 4, begin, decoded_block_bytes<A>(*p.layout)};
        multiply_blocks<A, C, R>(p, x, strip, codes, begin, end, totals + lane, kTile);
    }
}

template <class A>
void decoded_panel(const Product& p, const Panel& x, std::size_t tile, std::size_t begin, std::size_t end,
                   const std::uint8_t* operands, float* totals) {
    unroll<A::kPanels>([&](auto which) {
        constexpr int R = A::kPanelRows[which];
        if constexpr (R <= A::kManyRows)
            if (x.rows == R) decoded_panel_of<A, R>(p, x, tile, begin, end, operands, totals);
    });
}

// A stretch of a tile is decoded, then multiplied with each panel: multiply_panel(p, panel, tile, begin, end, operands,
// totals) for blocks [begin, end). With each goes a share of what is next in memory, into the second-level cache: no
// processor looks so far ahead by itself, and nothing is multiplied while codes are waited for.
template <class A, int kBits, class MultiplyPanel>
void many_rows(const Product& p, std::size_t tile, std::uint8_t* scratch, MultiplyPanel multiply_panel) {
    auto* totals = reinterpret_cast<float*>(scratch);
    const std::size_t rows = padded_rows(p), chunk = decoded_blocks<A>(*p.layout);
    std::uint8_t* operands = scratch + rows * kTile * 4;
    std::memset(totals, 0, rows * kTile * 4);
    for (std::size_t b = 0; b < p.layout->blocks; b += chunk) {
        const std::size_t end = b + chunk < p.layout->blocks ? b + chunk : p.layout->blocks;
        decode<A, kBits>(p, tile, b, end, operands);
        const std::uint8_t* next = p.weight + p.layout->record_at(tile, end);
        const std::size_t share = (end - b) * p.layout->record_bytes / p.panel_count + 1;
        float* to = totals;
        for (std::size_t i = 0; i < p.panel_count; to += p.panels[i++].rows * kTile, next += share) {
            for (std::size_t at = 0; at < share; at += 64) __builtin_prefetch(next + at, 0, 2);
            multiply_panel(p, p.panels[i], tile, b, end, operands, to);
        }
    }
    for (std::size_t i = 0; i < p.panel_count; totals += p.panels[i++].rows * kTile)
        store_totals(p, p.panels[i], tile, 0, kTile, totals, kTile);
}

template <class A, int kBits>
void few_rows_panel(const Product& p, const Panel& x, std::size_t begin, std::size_t end) {
    unroll<A::kPanels>([&](auto which) {
        constexpr int R = A::kPanelRows[which];
        if constexpr (R <= A::kFewRows)
            if (x.rows == R) few_rows<A, kBits, R>(p, x, begin, end);
    });
}

template <class A, int kBits>
void multiply_bits(const Product& p, std::size_t begin, std::size_t end, std::uint8_t* scratch) {
    if (p.panel_count == 1 && p.panels[0].rows <= A::kFewRows) return few_rows_panel<A, kBits>(p, p.panels[0], begin, end);
    for (std::size_t tile = begin; tile < end; ++tile)
        if constexpr (A::kDecodesAside)
            many_rows<A, kBits>(p, tile, scratch, decoded_panel<A>);
        else
            for (std::size_t i = 0; i < p.panel_count; ++i) few_rows_panel<A, kBits>(p, p.panels[i], tile, tile + 1);
}

template <class A>
void multiply(const Product& p, std::size_t begin, std::size_t end, std::uint8_t* scratch) {
    p.layout->stored_bits == 4 ? multiply_bits<A, 4>(p, begin, end, scratch)
                               : multiply_bits<A, 8>(p, begin, end, scratch);
}

template <class A>
constexpr woqfx::Kernel kernel(const char* label) {
    return {label,        A::kWord,     A::V::kUnsignedCodes, false,       A::kPanelRows,   A::kFewRows,
            A::kManyRows, 0,            prepare<A::kWord>,    multiply<A>, scratch_bytes<A>};
}

// Compute dtype bf16 without an instruction for it: operands rounded to bfloat16, multiplied as float32.
constexpr woqfx::Kernel rounded_to_bf16(woqfx::Kernel kernel) {
    kernel.bf16_by_fp32 = true;
    return kernel;
}

}  // namespace
