#include "roofline_loops.h"

namespace woqfx::roofline {

const Loops& portable_loops() { return loops; }

}  // namespace woqfx::roofline
