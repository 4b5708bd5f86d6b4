// AVX-512 with VNNI, which is for int8.
#include "arithmetic.h"
#include "multiply.h"
#include "vec_avx512.h"

namespace woqfx {

const Kernels& avx512_vnni_kernels() {
    static const Kernels kernels{{
        avx512_kernels().of[0],
        avx512_kernels().of[1],
        kernel<Int8<Avx512Vnni>>("vpdpbusd"),
    }};
    return kernels;
}

}  // namespace woqfx
