// What each instruction set provides for encode.cpp: the two jobs, on some of the rows.
#pragma once

#include "encode.h"

namespace woqfx::encode {

struct RowKernels {
    void (*nearest)(const NearestJob&, std::size_t begin, std::size_t end, float* scratch);
    void (*square_error)(const ErrorJob&, std::size_t begin, std::size_t end, float* scratch);
};

extern const RowKernels portable_rows;
#if defined(WOQFX_X86)
extern const RowKernels avx2_rows, avx512_rows;
#endif

// Where kernels work, 64-byte aligned: three rows and codes for one, in groups that each begin at a multiple of 16
// floats; and eight numbers per group.
constexpr std::size_t kRowBuffers = 4, kGroupBuffers = 8;

[[gnu::always_inline]] constexpr std::size_t padded(std::size_t n) { return (n + 15) / 16 * 16; }

[[gnu::always_inline]] inline std::size_t scratch_floats(const Weight& weight) {
    return kRowBuffers * weight.groups() * padded(weight.group) + kGroupBuffers * padded(weight.groups());
}

}  // namespace woqfx::encode
