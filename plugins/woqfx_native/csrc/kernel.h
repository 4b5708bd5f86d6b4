// What the translation unit of an instruction set offers to linear.cpp: a table of functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace woqfx {

// What a 32-bit word of prepared activations, or a lane of decoded weights, holds.
enum class Word { f32, bf16x2, int8x4 };

// How codes become a kernel's operands. `origin` less a block's zero, times the sum of the block's activations, is what
// the block's sum starts from, so that zeros cost nothing per weight.
struct Operands {
    alignas(64) std::uint32_t table[16];  // of each nibble: a float32, a bfloat16, or an int8 or uint8
    int origin;                           // what operands of integer grids have subtracted from their codes
    int implied_zero;                     // of weights without zeros
    float unit;                           // what a codebook's step is worth in int8
};

// What belongs to a block of a row, beside its words.
struct BlockOfRow {
    std::uint32_t start;                  // what the block's sum starts from, if all zeros are the middle; with zeros,
                                          // what origin - zero is multiplied by: float32, or int32 for int8; with
                                          // offsets, the sum of the block's activations: float32
    float step;                           // int8: the value of 1
};

// Some rows of activations, ready to be multiplied, row by row: a row's words, then its blocks.
struct Panel {
    int rows;                             // as the kernel takes them; the last may be padding
    int used;
    const std::uint32_t* words;
    std::size_t row_words;                // from row to row
    std::size_t blocks_at;                // in a row: words before its blocks
    std::size_t first;                    // the number of its first row
};

struct Outlier {
    std::uint32_t column;                 // of the codes
    float value;
};

struct Product {
    const Layout* layout;
    const std::uint8_t* weight;
    const Operands* operands;
    const Panel* panels;
    std::size_t panel_count;
    bool by_tiles;                        // panels are of any size, for kernels of tile registers
    const float* bias;
    void* y;
    Float y_type;
    std::size_t y_stride;
    const Outlier* outliers;              // of row m: those from outlier_begin[m - first_row] to the next row's
    const std::size_t* outlier_begin;     // null when there are none
    std::size_t first_row;
};

struct Source {
    const Layout* layout;
    const std::int32_t* order;
    const void* x;
    Float type;
    std::size_t stride;
    float outlier_threshold;
    bool round_to_bf16;
    int shift;                            // what sums are multiplied by: origin - implied_zero; 1 if not all are alike
    float unit;                           // Operands::unit
};

struct Kernel {
    const char* label;                    // the instruction that multiplies, for people
    Word word;
    bool unsigned_codes;                  // int8: weights uint8 rather than int8
    bool bf16_by_fp32;                    // compute bf16 by rounding operands to it and multiplying in fp32
    const int* panel_rows;                // the sizes of panel that it takes, largest first, ending in 1
    int few_rows, many_rows;              // so many are one panel; of more, panels of up to so many
    std::size_t tiles_from;               // from so many rows on it takes panels of up to 16 of any size; 0: never

    // A row of activations, made ready: its words and its blocks. Outliers (int8) are left out: stored to `found`, and
    // counted. `buffer` has 4 bytes per input, whole steps.
    std::size_t (*prepare)(const Source&, std::size_t row, std::uint32_t* words, BlockOfRow* blocks, float* buffer,
                           Outlier* found);
    // Tiles [begin, end) of the result, for all panels. `scratch` has scratch_bytes(); needed if there are many rows.
    void (*multiply)(const Product&, std::size_t begin, std::size_t end, std::uint8_t* scratch);
    std::size_t (*scratch_bytes)(const Product&);
};

struct Kernels {
    Kernel of[3];                         // by Compute
};

const Kernels& portable_kernels();
#if defined(WOQFX_X86)
const Kernels& avx2_kernels();
const Kernels& avx_vnni_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_vnni_kernels();
const Kernels& avx512_bf16_kernels();
const Kernels& amx_kernels();
#endif

}  // namespace woqfx
