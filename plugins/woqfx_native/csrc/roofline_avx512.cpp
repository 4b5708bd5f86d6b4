#include "roofline_loops.h"

namespace woqfx::roofline {

const Loops& avx512_loops() { return loops; }

}  // namespace woqfx::roofline
