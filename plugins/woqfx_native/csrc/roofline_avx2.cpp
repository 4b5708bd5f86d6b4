#include "roofline_loops.h"

namespace woqfx::roofline {

const Loops& avx2_loops() { return loops; }

}  // namespace woqfx::roofline
