// AVX-512 with VNNI and BF16.
#include "arithmetic.h"
#include "multiply.h"
#include "vec_avx512.h"

namespace woqfx {

const Kernels& avx512_bf16_kernels() {
    static const Kernels kernels{{
        avx512_kernels().of[0],
        kernel<Bf16<Avx512Bf16>>("vdpbf16ps"),
        avx512_vnni_kernels().of[2],
    }};
    return kernels;
}

}  // namespace woqfx
