#include "ops_kernel.h"
#include "vec_avx512.h"

namespace {

struct Vectors : Avx512Bf16 {
    static void store_bf16(std::uint16_t* to, F value) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
    }
};

}  // namespace

namespace woqfx::runtime {

const Ops& avx512_bf16_ops() {
    static constexpr Ops ops = ops_of<Vectors>();
    return ops;
}

}  // namespace woqfx::runtime
