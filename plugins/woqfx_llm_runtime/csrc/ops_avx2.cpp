#include "ops_kernel.h"
#include "vec_avx2.h"

namespace woqfx::runtime {

const Ops& avx2_ops() {
    static constexpr Ops ops = ops_of<Avx2>();
    return ops;
}

}  // namespace woqfx::runtime
