// How a packed weight lies in memory.
//
//   header | order | tile 0 | tile 1 | ...          each part on a 64-byte boundary
//   tile   = record of block 0 | record of block 1 | ...
//   record = 32 scales | 32 zeros or offsets (if asymmetric) | codes
//
// A tile is 32 outputs, side by side; a kernel's vector lanes are outputs, so that no sum ever crosses lanes. A block
// is as many inputs as share a scale: a group, or a piece of a long one (which repeats the group's scale). One tile is
// one stream of memory, scales included: what the prefetcher likes best.
//
// Codes come in steps of 8 inputs. Within a step, a lane has one 32-bit word of 8 nibbles, or two words of 4 bytes:
//   codes of up to 4 bits: byte b of the word holds input b in its low nibble and input b + 4 in its high one, so
//                          that (w & 0x0f0f0f0f) and (w >> 4 & 0x0f0f0f0f) are 4 consecutive inputs each (int8), and
//                          w >> 4 i has one input in its low nibble (fp32) and another 16 bits above (bf16);
//   more:                  byte b of word j holds input 4 j + b.
// Inputs that fill up a block's last step have code 0, and activations 0 when they are multiplied.
#pragma once

#include <cstddef>
#include <cstdint>

#include "api.h"

namespace woqfx {

constexpr std::size_t kTile = 32;         // outputs of a tile
constexpr std::size_t kStep = 8;          // inputs of a step
constexpr std::size_t kLongestBlock = 512;
constexpr std::uint32_t kLayoutVersion = 2;

// What an integer grid's codes are counted from: w = (code - middle) * scale, (code - zero) * scale, with a zero of each
// group, or code * scale + offset, with an offset of each group.
enum class Origin : std::uint32_t { middle = 0, zeros = 1, offsets = 2 };

struct Header {
    char magic[8];
    std::uint32_t version, bits;
    std::uint64_t n, k, group, size;      // size: of the whole buffer in bytes
    Float scale_type;
    Origin origin;
    std::uint32_t has_order, level_count;
    float levels[16];
    std::uint8_t reserved[256 - 8 - 2 * 4 - 4 * 8 - 4 * 4 - 16 * 4];
};
static_assert(sizeof(Header) == 256);

struct Layout {
    std::size_t n, k, group, groups;
    int bits;                             // of the plain codes
    int stored_bits;                      // 4 or 8
    Float scale_type;                     // of offsets, too
    Origin origin;
    bool has_order;
    std::size_t level_count;              // 0 for an integer grid
    float levels[16];

    std::size_t block, blocks;            // inputs of a block (but for the last), blocks of a row
    std::size_t block_steps, last_steps;
    std::size_t steps;                    // of a row: (blocks - 1) * block_steps + last_steps
    std::size_t origins_at, codes_at;     // in a record
    std::size_t step_bytes, record_bytes, tile_bytes, tiles;
    std::size_t order_at, tiles_at, size; // in the buffer

    // Every size with checked arithmetic; Error for a shape that is impossible or does not fit in memory.
    static Layout of(const Header&);

    std::size_t record_at(std::size_t tile, std::size_t b) const {
        return tiles_at + tile * tile_bytes + b * record_bytes;
    }
    std::size_t steps_of(std::size_t b) const { return b + 1 < blocks ? block_steps : last_steps; }
    std::size_t width_of(std::size_t b) const { return b + 1 < blocks ? block : k - b * block; }
    int middle() const { return 1 << (bits - 1); }
};

constexpr std::size_t divide_up(std::size_t a, std::size_t b) { return a / b + (a % b != 0); }

constexpr std::size_t scale_bytes(Float type) { return type == Float::f32 ? 4 : 2; }

}  // namespace woqfx
