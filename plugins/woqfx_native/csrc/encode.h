// Quantizing: scales fitted to the groups of a weight, its nearest codes, and how far off they are.
//
// The numbers are those of woqfx/dtype.py, woqfx/nearest.py and woqfx/quality.py, bit for bit: every operation is the
// same float32 operation, sums included, whose order is defined there (halves are added until one number is left).
// Nothing here may be contracted to fused multiply-adds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "api.h"

namespace woqfx::encode {

/// How a group's scale comes from its numbers: `DType.fit`.
enum class Fit : std::uint8_t { clipped, full_range, asymmetric, codebook };

/// The most levels of a codebook that fit the kernels' registers.
constexpr std::size_t kMaxLevels = 16;

/// A storage grid, as data.
struct Grid {
    Fit fit = Fit::clipped;
    int bits = 0;

    // Integer grids: the code of 0 in a symmetric group, and the largest code.
    float middle = 0, top = 0;

    // Codebooks. Levels in code order, padded with 0; distinct levels in ascending order with the code of each; the
    // thresholds between them, padded with infinity.
    alignas(64) float levels[kMaxLevels] = {};
    alignas(64) float ranked[kMaxLevels] = {};
    alignas(64) std::int32_t codes[kMaxLevels] = {};
    alignas(64) float thresholds[kMaxLevels] = {};
    double reach = 1;  // the largest magnitude
    float empty = 1;   // the scale of a group of zeros

    /// 1 to 8 bits. Throws Error for anything else, and for a clipped grid of 1 bit, which has no step.
    static Grid integer(int bits, bool full_range, bool symmetric);
    /// 1 to 16 finite levels, not all 0, in code order. Throws Error for anything else.
    static Grid codebook(int bits, const float* levels, std::size_t count);
};

/// Rows of weights in groups of `group` columns, of which the last may be shorter.
struct Weight {
    const void* data;
    Float type;
    std::size_t rows, columns, group;

    // Always inlined, here and below: a copy compiled for one instruction set must not be linked into another.
    [[gnu::always_inline]] std::size_t groups() const { return (columns + group - 1) / group; }
};

/// Which share of its range each group keeps: the ratio with the least error sum_k importance[k] * (w_k - w'_k)^2, the
/// first in a tie.
struct Search {
    const double* ratios;
    std::size_t count;
    const float* importance = nullptr;  // [columns]; null: all 1
};

/// What `nearest` writes: codes [rows, packed_bytes(columns, bits)], and float32 [rows, groups].
struct Output {
    std::uint8_t* codes;
    float* scales;
    float* zeros = nullptr;  // asymmetric only
};

/// A quantized weight in its plain form.
struct Stored {
    const std::uint8_t* codes;
    const float* scales;
    const std::uint8_t* zeros = nullptr;  // asymmetric only
};

/// Bytes of a row of codes.
[[gnu::always_inline]] constexpr std::size_t packed_bytes(std::size_t columns, int bits) {
    return columns / 8 * bits + (columns % 8 * bits + 7) / 8;
}

/// Everything that rows need, for the kernels.
struct NearestJob {
    Weight weight;
    Grid grid;
    Float storage;  // of scales
    Search search;
    Output output;
};

struct ErrorJob {
    Weight weight;
    Grid grid;
    Stored stored;
    float* off;   // [rows]: sum of (w' - w)^2
    float* size;  // [rows]: sum of w^2
};

/// Quantize. A group that holds a NaN or an infinity, or whose scale `storage` cannot hold, gets a scale that is not
/// finite. Rows are shared out among `threads` (as in api.h). Neither
/// these nor the instruction set change a bit.
void nearest(const NearestJob& job, int threads, Isa isa);

/// Measure each row's squared error and squared size.
void square_error(const ErrorJob& job, int threads, Isa isa);

}  // namespace woqfx::encode
