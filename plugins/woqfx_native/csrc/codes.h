// Where codes lie in a step of the packed layout (layout.h), and in a row as checkpoints hold it.
#pragma once

#include "layout.h"

namespace woqfx {

inline std::size_t row_bytes(std::size_t k, int bits) { return (k * static_cast<std::size_t>(bits) + 7) / 8; }

// The order of nibbles in a step: input b and input b + 4 share byte b. `Word` is 32 bits, or a vector of them.
template <class Word>
Word weave(Word w) {
    w = (w & 0xff0000ffu) | (w & 0x0000ff00u) << 8 | (w >> 8 & 0x0000ff00u);
    return (w & 0xf00ff00fu) | (w & 0x00f000f0u) << 4 | (w >> 4 & 0x00f000f0u);
}

inline std::uint32_t unweave(std::uint32_t w) {
    w = (w & 0xf00ff00f) | (w & 0x00f000f0) << 4 | (w >> 4 & 0x00f000f0);
    return (w & 0xff0000ff) | (w & 0x0000ff00) << 8 | (w >> 8 & 0x0000ff00);
}

// Where input `o` of a step has its code in a step's bytes: byte, and shift in it.
struct Place {
    std::size_t byte;
    unsigned shift;
};

inline Place place_of(const Layout& l, std::size_t lane, std::size_t o) {
    if (l.stored_bits == 4) return {lane * 4 + o % 4, static_cast<unsigned>(o / 4 * 4)};
    return {o / 4 * kTile * 4 + lane * 4 + o % 4, 0};
}

}  // namespace woqfx
