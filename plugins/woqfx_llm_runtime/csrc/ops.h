// What the engine computes beside matrix products: a table of functions for each instruction set.
//
// Each of them treats a row, or a query, alike whatever else is computed with it, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "api.h"

namespace woqfx::runtime {

enum class Activation : std::uint32_t { silu, gelu, gelu_tanh, quick_gelu, relu, relu2 };
enum class KVType : std::uint32_t { f32, f16, bf16, int8 };

constexpr std::size_t kPage = 64;       // positions of a page of keys and values
constexpr std::size_t kSpan = 256;      // positions of a span: a query takes the softmax of a span, and joins spans
constexpr std::size_t kSpanPages = kSpan / kPage;
constexpr std::size_t kPad = 16;        // a value's width is a multiple of it
constexpr std::size_t kMostQueries = 12;

// Keys and values of one head in one page: scales of keys, scales of values (int8 only; float32 [kPage] each), keys
// [head_dim][kPage], values [kPage][width]. In bf16, what is multiplied together lies together: keys
// [head_dim / 2, rounded up][kPage][2], values [kPage / 2][width][2].
struct HeadLayout {
    KVType type;
    std::size_t head_dim, width;        // width: head_dim filled up to a multiple of kPad
    std::size_t keys_at, values_at, bytes;

    static HeadLayout of(KVType, std::size_t head_dim);
};

inline std::size_t part_size(const HeadLayout& l) { return kPad + l.width; }

// Some queries that read the same head of keys and values.
struct Queries {
    std::size_t count;                  // 1..kMostQueries
    const float* q[kMostQueries];       // [head_dim]
    float* out[kMostQueries];           // [head_dim]
    std::size_t begin[kMostQueries];    // the positions that a query sees: [begin, end)
    std::size_t end[kMostQueries];
    const std::uint8_t* const* pages;   // of all pages from position 0 on
    std::size_t head_at;                // where the head begins in a page
    float scale, softcap;               // softcap: 0 for none
    // A bias by distance, which is added to scores: null for none, or a query's [2 * (reach + kPage)], from distance
    // -reach - kPage on (relative.h); and where the query stands.
    const float* bias[kMostQueries];
    std::size_t position[kMostQueries];
    std::size_t reach;
};

// A matrix [n, k] that is not quantized, as tiles [k][32] of 32 outputs side by side.
struct DenseTiles {
    const void* data;
    Float type;
    std::size_t n, k;
};

struct Ops {
    // y = x / sqrt(mean(x^2) + eps) * weight; a weight may be null: 1.
    void (*rms_norm)(const float* x, std::size_t n, float eps, const float* weight, float* y);
    // y = (x - mean) / sqrt(var + eps) * weight + bias; both may be null.
    void (*layer_norm)(const float* x, std::size_t n, float eps, const float* weight, const float* bias, float* y);
    // y = act(x), or act(x) * other.
    void (*activate)(Activation, const float* x, const float* other, std::size_t n, float* y);
    void (*add)(float* to, const float* x, float factor, std::size_t n);  // to += factor * x
    // x = cap * tanh(x * factor / cap), or x * factor if cap is 0.
    void (*scale_logits)(float* x, std::size_t n, float factor, float cap);
    // Pairs (i, i + n) or, interleaved, (2 i, 2 i + 1), turned by the angle whose cosine and sine are [n].
    void (*rotate)(float* x, const float* cosines, const float* sines, std::size_t n, bool interleaved);
    // x becomes exp(x - max) / sum.
    void (*softmax)(float* x, std::size_t n);
    // y = exp(x / divisor - most).
    void (*weigh)(const float* x, std::size_t n, float divisor, float most, float* y);
    // A token's key, or value, to offset `at` of a page's head.
    void (*store_key)(const HeadLayout&, std::uint8_t* head, std::size_t at, const float* key);
    void (*store_value)(const HeadLayout&, std::uint8_t* head, std::size_t at, const float* value);
    void (*attend)(const HeadLayout&, const Queries&);
    // The same in parts, with the same bits: what queries gather of one span, to parts[j] [part_size(l)] for query j; and of
    // a query's `count` parts, span by span, its output [head_dim].
    void (*attend_span)(const HeadLayout&, const Queries&, std::size_t span, float* const* parts);
    void (*join_spans)(const HeadLayout&, const float* parts, std::size_t count, float* out);
    // Outputs of tiles [begin, end) for rows of x [rows, k]: y = x @ W.T + bias.
    void (*dense)(const DenseTiles&, const float* x, std::size_t x_stride, std::size_t rows, const float* bias, float* y,
                  std::size_t y_stride, std::size_t begin, std::size_t end);
};

const Ops& portable_ops();
#if defined(WOQFX_X86)
const Ops& avx2_ops();
const Ops& avx512_ops();
const Ops& avx512_bf16_ops();
#endif

// Those of the instruction set that kernels run on here.
const Ops& ops();

}  // namespace woqfx::runtime
