// AMX-INT8 and AMX-BF16, on a CPU that has AVX-512 with VNNI and BF16.
#include "amx.h"

namespace woqfx {

const Kernels& amx_kernels() {
    // Sums of int8 products are exact, so few rows may go another way; sums of bfloat16 products depend on the way.
    static const Kernels kernels{{
        avx512_kernels().of[0],
        tile_kernel<AmxBf16>("tdpbf16ps", 1),
        tile_kernel<AmxInt8>("tdpbsud, vpdpbusd for few rows", AmxInt8::kFewRows + 1),
    }};
    return kernels;
}

}  // namespace woqfx
