// AVX-512 F, BW, DQ, VL.
#include "arithmetic.h"
#include "multiply.h"
#include "vec_avx512.h"

namespace woqfx {

const Kernels& avx512_kernels() {
    static constexpr Kernels kernels{{
        kernel<Fp32<Avx512>>("vfmadd"),
        rounded_to_bf16(kernel<Fp32<Avx512>>("vfmadd of bfloat16 values")),
        kernel<Int8<Avx512>>("vpmaddubsw"),
    }};
    return kernels;
}

}  // namespace woqfx
