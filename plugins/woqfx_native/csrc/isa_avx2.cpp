// AVX2, FMA, F16C.
#include "arithmetic.h"
#include "multiply.h"
#include "vec_avx2.h"

namespace woqfx {

const Kernels& avx2_kernels() {
    static constexpr Kernels kernels{{
        kernel<Fp32<Avx2>>("vfmadd"),
        rounded_to_bf16(kernel<Fp32<Avx2>>("vfmadd of bfloat16 values")),
        kernel<Int8<Avx2>>("vpmaddubsw"),
    }};
    return kernels;
}

}  // namespace woqfx
