#include "roofline_loops.h"

namespace woqfx::roofline {

const Loops& avx_vnni_loops() { return loops; }

}  // namespace woqfx::roofline
