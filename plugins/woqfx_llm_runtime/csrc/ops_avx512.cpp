#include "ops_kernel.h"
#include "vec_avx512.h"

namespace woqfx::runtime {

const Ops& avx512_ops() {
    static constexpr Ops ops = ops_of<Avx512>();
    return ops;
}

}  // namespace woqfx::runtime
