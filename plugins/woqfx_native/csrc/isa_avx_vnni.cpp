// AVX2 with AVX-VNNI, which is for int8.
#include "arithmetic.h"
#include "multiply.h"
#include "vec_avx2.h"

namespace woqfx {

const Kernels& avx_vnni_kernels() {
    static const Kernels kernels{{
        avx2_kernels().of[0],
        avx2_kernels().of[1],
        kernel<Int8<AvxVnni>>("vpdpbusd"),
    }};
    return kernels;
}

}  // namespace woqfx
