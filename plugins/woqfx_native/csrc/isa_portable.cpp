// Any architecture.
#include "arithmetic.h"
#include "multiply.h"
#include "prepare.h"
#include "vec_portable.h"

namespace woqfx {

const Kernels& portable_kernels() {
    static constexpr Kernels kernels{{
        kernel<Fp32<Portable>>("portable multiply-add"),
        rounded_to_bf16(kernel<Fp32<Portable>>("portable multiply-add of bfloat16 values")),
        kernel<Int8<Portable>>("portable int8 dot products"),
    }};
    return kernels;
}

}  // namespace woqfx
