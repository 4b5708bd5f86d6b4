#include "layout.h"

#include <cmath>
#include <cstring>

namespace woqfx {
namespace {

// Sizes that throw rather than wrap.
struct Checked {
    std::size_t value;
    Checked operator*(Checked other) const {
        std::size_t result;
        if (__builtin_mul_overflow(value, other.value, &result)) throw Error("a packed weight would exceed memory");
        return {result};
    }
    Checked operator+(Checked other) const {
        std::size_t result;
        if (__builtin_add_overflow(value, other.value, &result)) throw Error("a packed weight would exceed memory");
        return {result};
    }
};

Checked aligned(Checked size) { return {((size + Checked{63}).value / 64) * 64}; }

// Long groups are cut into pieces: sums stay short, which is accurate, and blocks small, which suits the cache.
std::size_t block_width(std::size_t group, bool single) {
    if (group <= kLongestBlock) return group;
    if (single) return kLongestBlock;
    for (std::size_t width = kLongestBlock; width >= 64; width -= kStep)
        if (group % width == 0) return width;
    return group;
}

void require(bool ok, const std::string& message) {
    if (!ok) throw Error(message);
}

}  // namespace

Layout Layout::of(const Header& h) {
    constexpr std::uint64_t kMost = 1u << 30;
    require(std::memcmp(h.magic, "woqfxpk", 8) == 0 && h.version == kLayoutVersion,
            "not a packed weight of layout version " + std::to_string(kLayoutVersion) + ": pack the weight again");
    require(h.n >= 1 && h.n <= kMost && h.k >= 1 && h.k <= kMost,
            "a weight of shape [" + std::to_string(h.n) + ", " + std::to_string(h.k) + "] cannot be packed");
    require(h.group >= 1 && h.group <= h.k, "group size " + std::to_string(h.group) + " is not in 1.." +
                                                std::to_string(h.k) + ", the weight's inputs");
    require(h.bits >= 1 && h.bits <= 8, std::to_string(h.bits) + " bits per code: kernels take 1 to 8");
    require(h.level_count == 0 || (h.level_count >= 2 && h.level_count <= 16 && h.bits <= 4 &&
                                   h.level_count <= 1u << h.bits),
            "a codebook of " + std::to_string(h.level_count) + " levels: kernels take 2 to 16, at most 2^bits");
    bool finite = true, any = h.level_count == 0;
    for (std::size_t i = 0; i < h.level_count; ++i) {
        finite = finite && std::isfinite(h.levels[i]);
        any = any || h.levels[i] != 0;
    }
    require(finite && any, "a codebook's levels must be finite, and one of them not 0");
    require(h.scale_type <= Float::bf16 && h.origin <= Origin::offsets && h.has_order <= 1 &&
                (h.origin == Origin::middle || !h.level_count),
            "not the header of a packed weight: pack the weight again");

    Layout l{};
    l.n = h.n, l.k = h.k, l.group = h.group, l.groups = divide_up(l.k, l.group);
    l.bits = static_cast<int>(h.bits), l.stored_bits = l.bits <= 4 ? 4 : 8;
    l.scale_type = h.scale_type, l.origin = h.origin, l.has_order = h.has_order;
    l.level_count = h.level_count;
    std::memcpy(l.levels, h.levels, sizeof l.levels);

    l.block = block_width(l.group, l.groups == 1);
    require(l.block <= 1 << 16, "group size " + std::to_string(l.group) + " has no divisor that fits a kernel's block");
    l.blocks = divide_up(l.k, l.block);
    l.block_steps = divide_up(l.block, kStep);
    l.last_steps = divide_up(l.k - (l.blocks - 1) * l.block, kStep);
    l.steps = (l.blocks - 1) * l.block_steps + l.last_steps;
    l.origins_at = kTile * scale_bytes(l.scale_type);
    l.codes_at = l.origins_at + (l.origin == Origin::zeros     ? kTile
                                 : l.origin == Origin::offsets ? kTile * scale_bytes(l.scale_type)
                                                               : 0);
    l.step_bytes = kTile * static_cast<std::size_t>(l.stored_bits);
    l.record_bytes = l.codes_at + l.block_steps * l.step_bytes;
    l.tiles = divide_up(l.n, kTile);
    const Checked tile = Checked{l.blocks} * Checked{l.codes_at} + Checked{l.steps} * Checked{l.step_bytes};
    l.tile_bytes = aligned(tile).value;
    l.order_at = sizeof(Header);
    const Checked order = l.has_order ? aligned(Checked{l.k} * Checked{4}) : Checked{0};
    const Checked tiles_at = Checked{l.order_at} + order;
    l.tiles_at = tiles_at.value;
    l.size = (tiles_at + Checked{l.tiles} * Checked{l.tile_bytes}).value;
    return l;
}

}  // namespace woqfx
