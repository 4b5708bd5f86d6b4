#include "roofline_loops.h"

namespace woqfx::roofline {

const Loops& avx512_bf16_loops() { return loops; }

}  // namespace woqfx::roofline
