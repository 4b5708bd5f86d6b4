// Memory for weights, in huge pages where there are any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace woqfx {

constexpr std::size_t kHugePage = 2 << 20;

// `size` bytes on a 64-byte boundary. Throws std::bad_alloc.
//
// A model's smaller weights lie one after the other in common chunks: in pages of 4 KiB of their own they were read at
// two thirds of the speed, since each page costs a look-up and ends the processor's stream. A chunk is given back when
// the last weight in it is. Each thread fills chunks of its own.
std::shared_ptr<std::uint8_t> weight_memory(std::size_t size);

}  // namespace woqfx
