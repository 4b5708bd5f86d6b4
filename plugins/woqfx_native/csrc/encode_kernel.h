// The kernels of encode.h, for whatever instructions the including file is compiled for.
#pragma once

#include "encode_rows.h"
#include "lanes.h"
#include "numbers.h"

namespace woqfx::encode {
namespace {

constexpr std::uint32_t kSign = 0x80000000u, kInfinity = 0x7f800000u, kSmallestNormal = 0x00800000u;

// -- Reading weights -------------------------------------------------------------------------------------------------

inline void widen(const float* from, std::size_t n, float* to) { std::memcpy(to, from, n * sizeof(float)); }

inline void widen_bf16(const std::uint16_t* from, std::size_t n, float* to) {
    for (std::size_t i = 0; i < n; ++i) to[i] = from_bf16(from[i]);
}

inline void widen_fp16(const std::uint16_t* from, std::size_t n, float* to) {
    for (std::size_t i = 0; i < n; ++i) to[i] = from_f16(from[i]);
}

inline void widen(const Weight& weight, std::size_t first, std::size_t n, float* to) {
    const auto* half = static_cast<const std::uint16_t*>(weight.data) + first;
    switch (weight.type) {
        case Float::f32: return widen(static_cast<const float*>(weight.data) + first, n, to);
        case Float::bf16: return widen_bf16(half, n, to);
        case Float::f16: return widen_fp16(half, n, to);
    }
}

// -- Rows ------------------------------------------------------------------------------------------------------------

// A row in groups that each begin at a multiple of 16 floats, filled up with zeros, which change no extent.
struct Layout {
    std::size_t columns, group, groups, stride;

    explicit Layout(const Weight& w)
            : columns(w.columns), group(w.group), groups(w.groups()), stride(padded(w.group)) {}

    std::size_t width(std::size_t g) const { return g + 1 < groups ? group : columns - g * group; }
};

// Asks for what lies a row further than group g of a row, since no processor looks ahead so far by itself.
inline void prefetch_below(const Weight& weight, const Layout& layout, std::size_t row, std::size_t g) {
    if (row + 1 >= weight.rows) return;
    const std::size_t size = weight.type == Float::f32 ? 4 : 2;
    const char* from = static_cast<const char*>(weight.data) + ((row + 1) * layout.columns + g * layout.group) * size;
    for (std::size_t i = 0; i < layout.width(g) * size; i += 64) __builtin_prefetch(from + i);
}

inline void read_row(const Weight& weight, const Layout& layout, std::size_t row, float* to) {
    const std::size_t first = row * layout.columns;
    if (layout.stride == layout.group) {
        widen(weight, first, layout.columns, to);
        std::memset(to + layout.columns, 0, (layout.groups * layout.stride - layout.columns) * sizeof(float));
        return;
    }
    for (std::size_t g = 0; g < layout.groups; ++g) {
        const std::size_t width = layout.width(g);
        float* group = to + g * layout.stride;
        widen(weight, first + g * layout.group, width, group);
        std::memset(group + width, 0, (layout.stride - width) * sizeof(float));
    }
}

// -- Fitting scales --------------------------------------------------------------------------------------------------

// What a fit needs to know of each group. `amax` is NaN or infinite if one of the weights is.
struct Extents {
    float *amax, *low, *high;
};

template <bool Signed>
inline void measure(const Layout& layout, const float* weights, Extents extents) {
    for (std::size_t g = 0; g < layout.groups; ++g) {
        const float* group = weights + g * layout.stride;
        Ints amax{};  // as integers, NaN is larger than infinity
        Floats low = load<Floats>(group), high = low;
        for (std::size_t i = 0; i < layout.stride; i += kLanes) {
            const Floats w = load<Floats>(group + i);
            const Ints size = magnitude(w);
            amax = size > amax ? size : amax;
            if (Signed) low = smaller(w, low), high = larger(w, high);
        }
        const std::int32_t largest = fold_lanes(amax, [](auto a, auto b) { return a > b ? a : b; });
        extents.amax[g] = float_of(static_cast<std::uint32_t>(largest));
        if (Signed) {
            extents.low[g] = fold_lanes(low, [](auto a, auto b) { return a < b ? a : b; });
            extents.high[g] = fold_lanes(high, [](auto a, auto b) { return a > b ? a : b; });
        }
    }
}

// A scale as it can be used: `empty` for a group of zeros, never so small that its reciprocal overflows, and NaN where
// the weights are not finite.
inline float usable(float scale, float extent, float empty, float amax) {
    const std::uint32_t size = bits_of(scale) & ~kSign;
    const float raised = float_of((size < kSmallestNormal ? kSmallestNormal : size) | (bits_of(scale) & kSign));
    const float filled = extent == 0 ? empty : raised;
    return bits_of(amax) < kInfinity ? filled : float_of(kInfinity | 1u << 22);
}

inline void fit(const Grid& grid, double ratio, Extents extents, std::size_t groups, float* scales, float* zeros) {
    const float share = static_cast<float>(ratio);
    switch (grid.fit) {
        case Fit::clipped:
            for (std::size_t g = 0; g < groups; ++g) {
                const float amax = extents.amax[g];
                scales[g] = usable(amax * share / (grid.middle - 1), amax, 1, amax);
            }
            return;
        case Fit::full_range:
            for (std::size_t g = 0; g < groups; ++g) {
                const float extreme = extents.high[g] > -extents.low[g] ? extents.high[g] : extents.low[g];
                scales[g] = usable(extreme * share / -grid.middle, extreme, 1, extents.amax[g]);
            }
            return;
        case Fit::asymmetric:
            for (std::size_t g = 0; g < groups; ++g) {
                const float low = (extents.low[g] < 0 ? extents.low[g] : 0) * share;
                const float high = (extents.high[g] > 0 ? extents.high[g] : 0) * share;
                const float scale = (high - low) / grid.top;
                const float zero = rounded(-low / scale);
                zeros[g] = zero > 0 ? (zero < grid.top ? zero : grid.top) : 0;  // 0 / 0 counts as 0
                scales[g] = usable(scale, high - low, 1, extents.amax[g]);
            }
            return;
        case Fit::codebook: {
            const float share_of_reach = static_cast<float>(ratio / grid.reach);
            for (std::size_t g = 0; g < groups; ++g) {
                const float amax = extents.amax[g];
                scales[g] = usable(amax * share_of_reach, amax, grid.empty, amax);
            }
            return;
        }
    }
}

// The scale as `GroupParams.stored_as` gives it: rounded to a shorter float, not below its smallest normal number,
// infinite if too large. Since subnormal numbers are raised anyway, all keep the same number of bits.
inline float stored(float scale, Float storage) {
    if (storage == Float::f32) return scale;
    const bool half = storage == Float::f16;
    const int dropped = half ? 13 : 16;
    const std::uint32_t floor = half ? bits_of(0x1p-14f) : kSmallestNormal;
    const std::uint32_t limit = half ? bits_of(0x1p16f) : kInfinity;
    const std::uint32_t size = bits_of(scale) & ~kSign;
    std::uint32_t kept = size + ((1u << (dropped - 1)) - 1 + (size >> dropped & 1));
    kept = kept >> dropped << dropped;
    kept = kept < floor ? floor : kept;
    kept = kept < limit ? kept : kInfinity;
    kept = size < kInfinity ? kept : size;
    return float_of(kept | (bits_of(scale) & kSign));
}

// -- Codes -----------------------------------------------------------------------------------------------------------

// How many thresholds lie below x.
inline Ints rank(const Grid& grid, Floats x) {
    const float* t = grid.thresholds;
#if defined(__AVX2__)
    Ints r = (x > t[7]) & 8;
    r += (x > lookup(t, r + 3)) & 4;
    r += (x > lookup(t, r + 1)) & 2;
    return r + ((x > lookup(t, r)) & 1);
#else
    Ints r{};
    for (std::size_t i = 0; i + 1 < kMaxLevels; ++i) r -= x > t[i];  // true is -1
    return r;
#endif
}

// A group's codes, as `DType.encode` chooses them: `code` gives those of a vector of weights, `decoded` what they mean.
struct IntegerGroup {
    Floats scale, zero;
    float top;

    IntegerGroup(const Grid& grid, float scale, float zero) : scale(splat(scale)), zero(splat(zero)), top(grid.top) {}

    Floats level(Floats w) const { return smaller(larger(rounded(w / scale) + zero, Floats{}), splat(top)); }
    Ints code(Floats w) const { return __builtin_convertvector(level(w), Ints); }
    Floats decoded(Floats w) const { return (level(w) - zero) * scale; }
};

struct CodebookGroup {
    const Grid& grid;
    Floats scale, inverse;

    CodebookGroup(const Grid& grid, float scale, float) : grid(grid), scale(splat(scale)), inverse(splat(1 / scale)) {}

    Ints code(Floats w) const {
        return reinterpret_cast<Ints>(lookup(reinterpret_cast<const float*>(grid.codes), rank(grid, w * inverse)));
    }
    Floats decoded(Floats w) const { return lookup(grid.ranked, rank(grid, w * inverse)) * scale; }
};

template <class Group>
inline float loss(const Group& group, const float* weights, std::size_t n, const float* importance, float* squares) {
    for (std::size_t i = 0; i < n; i += kLanes) {
        const Floats w = load<Floats>(weights + i), off = group.decoded(w) - w;
        Floats square = off * off;
        if (importance) square *= load<Floats>(importance + i);
        store(squares + i, square);
    }
    return sum_by_halves(squares, n);
}

// Whole vectors are written, which may be more than n.
template <class Group>
inline void codes_of(const Group& group, const float* weights, std::size_t n, std::int32_t* codes) {
    for (std::size_t i = 0; i < n; i += kLanes) store(codes + i, group.code(load<Floats>(weights + i)));
}

// Codes into their bits, in the order of woqfx/packing.py.
inline void pack(const std::int32_t* codes, std::size_t n, int bits, std::uint8_t* to) {
    std::size_t i = 0;
    if (bits == 8) {
        for (; i < n; ++i) to[i] = static_cast<std::uint8_t>(codes[i]);
        return;
    }
    if (bits == 4) {
        for (; i < n / 2; ++i) {  // both codes at once, as the halves of a word
            const auto pair = load<std::uint64_t>(codes + 2 * i);
            to[i] = static_cast<std::uint8_t>(pair | pair >> 28);
        }
        if (n % 2) to[i] = static_cast<std::uint8_t>(codes[n - 1]);
        return;
    }
    for (; i < n; i += 8) {  // eight codes fill whole bytes
        const std::size_t count = n - i < 8 ? n - i : 8;
        std::uint64_t stream = 0;
        for (std::size_t c = 0; c < count; ++c) stream |= static_cast<std::uint64_t>(codes[i + c]) << (c * bits);
        for (std::size_t b = 0; b < (count * bits + 7) / 8; ++b) *to++ = static_cast<std::uint8_t>(stream >> (8 * b));
    }
}

inline void unpack(const std::uint8_t* from, std::size_t n, int bits, std::int32_t* codes) {
    std::size_t i = 0;
    if (bits == 8) {
        for (; i < n; ++i) codes[i] = from[i];
        return;
    }
    if (bits == 4) {
        for (; i < n / 2; ++i) {
            const std::uint64_t pair = from[i];
            store(codes + 2 * i, (pair | pair << 28) & 0xf0000000f);
        }
        if (n % 2) codes[n - 1] = from[i] & 15;
        return;
    }
    for (; i < n; i += 8) {
        const std::size_t count = n - i < 8 ? n - i : 8;
        std::uint64_t stream = 0;
        for (std::size_t b = 0; b < (count * bits + 7) / 8; ++b) stream |= std::uint64_t{*from++} << (8 * b);
        for (std::size_t c = 0; c < count; ++c) codes[i + c] = stream >> (c * bits) & ((1u << bits) - 1);
    }
}

// -- The two jobs ----------------------------------------------------------------------------------------------------

// Where a row is worked on, cut out of `scratch_floats`.
struct Scratch {
    float *weights, *squares, *importance;
    Extents extents;
    float *scales, *zeros, *trial, *trial_zeros, *least;
    std::int32_t* codes;

    Scratch(const Layout& layout, float* memory) {
        const std::size_t row = layout.groups * layout.stride;
        const auto take = [&memory](std::size_t n) {
            float* taken = memory;
            memory += padded(n);
            return taken;
        };
        weights = take(row), squares = take(row), importance = take(row);
        extents = {take(layout.groups), take(layout.groups), take(layout.groups)};
        scales = take(layout.groups), zeros = take(layout.groups), least = take(layout.groups);
        trial = take(layout.groups), trial_zeros = take(layout.groups);
        codes = reinterpret_cast<std::int32_t*>(take(row));
    }
};

// Per group the best of the ratios, in `scales` and `zeros`, before rounding to storage.
template <class Group>
inline void search(const NearestJob& job, const Layout& layout, const Scratch& s, const float* importance) {
    for (std::size_t r = 0; r < job.search.count; ++r) {
        fit(job.grid, job.search.ratios[r], s.extents, layout.groups, s.trial, s.trial_zeros);
        for (std::size_t g = 0; g < layout.groups; ++g) {
            const Group group(job.grid, stored(s.trial[g], job.storage), s.trial_zeros[g]);
            const std::size_t at = g * layout.stride;
            const float* weigh = importance ? importance + at : nullptr;
            const float off = loss(group, s.weights + at, layout.width(g), weigh, s.squares);
            if (r == 0 || off < s.least[g]) s.least[g] = off, s.scales[g] = s.trial[g], s.zeros[g] = s.trial_zeros[g];
        }
    }
}

template <class Group>
inline void nearest_rows_of(const NearestJob& job, std::size_t begin, std::size_t end, float* memory) {
    const Layout layout(job.weight);
    const Scratch s(layout, memory);
    const Grid& grid = job.grid;
    const bool ranged = grid.fit == Fit::full_range || grid.fit == Fit::asymmetric;
    const bool searching = job.search.count > 1;
    const std::size_t row_bytes = packed_bytes(layout.columns, grid.bits);
    for (std::size_t g = 0; g < layout.groups; ++g) s.zeros[g] = s.trial_zeros[g] = grid.middle;
    if (job.search.importance) {
        const Weight importance{job.search.importance, Float::f32, 1, layout.columns, layout.group};
        read_row(importance, layout, 0, s.importance);
    }
    for (std::size_t row = begin; row < end; ++row) {
        read_row(job.weight, layout, row, s.weights);
        if (ranged) measure<true>(layout, s.weights, s.extents);
        else measure<false>(layout, s.weights, s.extents);
        if (searching) search<Group>(job, layout, s, job.search.importance ? s.importance : nullptr);
        else fit(grid, job.search.ratios[0], s.extents, layout.groups, s.scales, s.zeros);
        float* scales = job.output.scales + row * layout.groups;
        for (std::size_t g = 0; g < layout.groups; ++g) scales[g] = stored(s.scales[g], job.storage);
        float* zeros = job.output.zeros;
        if (zeros) std::memcpy(zeros + row * layout.groups, s.zeros, layout.groups * sizeof(float));
        for (std::size_t g = 0; g < layout.groups; ++g) {
            prefetch_below(job.weight, layout, row, g);
            const Group group(grid, scales[g], s.zeros[g]);
            codes_of(group, s.weights + g * layout.stride, layout.width(g), s.codes + g * layout.group);
        }
        pack(s.codes, layout.columns, grid.bits, job.output.codes + row * row_bytes);
    }
}

inline void nearest_rows(const NearestJob& job, std::size_t begin, std::size_t end, float* memory) {
    if (job.grid.fit == Fit::codebook) nearest_rows_of<CodebookGroup>(job, begin, end, memory);
    else nearest_rows_of<IntegerGroup>(job, begin, end, memory);
}

// The weights that codes stand for.
inline Floats decoded(const Grid& grid, Ints code, float scale, float zero) {
    if (grid.fit == Fit::codebook) return lookup(grid.levels, code & 15) * scale;
    return (__builtin_convertvector(code, Floats) - zero) * scale;
}

inline void error_rows(const ErrorJob& job, std::size_t begin, std::size_t end, float* memory) {
    const Layout layout(job.weight);
    const Scratch s(layout, memory);
    const std::size_t row_bytes = packed_bytes(layout.columns, job.grid.bits);
    for (std::size_t row = begin; row < end; ++row) {
        read_row(job.weight, layout, row, s.weights);
        unpack(job.stored.codes + row * row_bytes, layout.columns, job.grid.bits, s.codes);
        for (std::size_t g = 0; g < layout.groups; ++g) {
            prefetch_below(job.weight, layout, row, g);
            const std::size_t at = row * layout.groups + g, first = g * layout.group;
            const float scale = job.stored.scales[at];
            const float zero = job.stored.zeros ? job.stored.zeros[at] : job.grid.middle;
            // In whole vectors, of which the next group overwrites what is too much.
            for (std::size_t i = 0; i < layout.width(g); i += kLanes) {
                const Floats w = load<Floats>(s.weights + g * layout.stride + i);
                const Floats off = decoded(job.grid, load<Ints>(s.codes + first + i), scale, zero) - w;
                store(s.squares + first + i, off * off);
                store(s.importance + first + i, w * w);
            }
        }
        job.off[row] = sum_by_halves(s.squares, layout.columns);
        job.size[row] = sum_by_halves(s.importance, layout.columns);
    }
}

}  // namespace
}  // namespace woqfx::encode
