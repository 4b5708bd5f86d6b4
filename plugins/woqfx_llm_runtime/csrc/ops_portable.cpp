#include "ops_kernel.h"
#include "vec_portable.h"

namespace woqfx::runtime {

const Ops& portable_ops() {
    static constexpr Ops ops = ops_of<Portable>();
    return ops;
}

}  // namespace woqfx::runtime
