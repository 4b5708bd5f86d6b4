// What this machine can do at most: the two limits of the roofline model (Williams, Waterman and Patterson, CACM 2009).
#pragma once

#include <cstddef>
#include <cstdint>

#include "api.h"

namespace woqfx {

// Seconds in which `threads` threads read `size` bytes once, each a part of its own.
double read_seconds(const std::uint8_t* data, std::size_t size, Isa, int threads);

// Operations a second of this kind on operands in registers; a multiply and an add are two. Takes some milliseconds.
double peak_operations(Compute, Isa, int threads);

}  // namespace woqfx
