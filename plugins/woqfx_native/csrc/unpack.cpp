// The packed layout into plain codes, and into numbers.
#include <cstring>

#include "codes.h"
#include "lane_params.h"
#include "numbers.h"
#include "pool.h"

namespace woqfx {
namespace {

void unpack_block(const Layout& l, const std::uint8_t* steps, std::size_t start, std::size_t width, std::size_t lane,
                  std::uint8_t* row) {
    std::size_t done = 0;
    if (l.bits == l.stored_bits && start * static_cast<std::size_t>(l.bits) % 8 == 0) {
        std::uint8_t* to = row + start * static_cast<std::size_t>(l.bits) / 8;
        for (; done + kStep <= width; done += kStep, to += l.bits, steps += l.step_bytes)
            for (std::size_t j = 0; j < static_cast<std::size_t>(l.stored_bits) / 4; ++j) {
                std::uint32_t word;
                std::memcpy(&word, steps + (j * kTile + lane) * 4, 4);
                if (l.stored_bits == 4) word = unweave(word);
                std::memcpy(to + 4 * j, &word, 4);
            }
    }
    for (std::size_t o = 0; done < width; ++done) {
        const Place place = place_of(l, lane, o);
        const std::uint32_t code = steps[place.byte] >> place.shift & ((1u << l.bits) - 1);
        const std::size_t bit = (start + done) * static_cast<std::size_t>(l.bits);
        const std::uint32_t placed = code << bit % 8;
        row[bit / 8] = static_cast<std::uint8_t>(row[bit / 8] | placed);
        if (placed >> 8) row[bit / 8 + 1] = static_cast<std::uint8_t>(row[bit / 8 + 1] | placed >> 8);
        if (++o == kStep) o = 0, steps += l.step_bytes;
    }
}

}  // namespace

void unpack(const PackedWeight& w, const PlainParts& parts, int threads) {
    const Layout& l = w.layout();
    if ((parts.zeros && !w.has_zeros()) || (parts.offsets && !w.has_offsets()) || (parts.order && !l.has_order))
        throw Error("a packed weight has no zeros, no offsets or no order to unpack");
    if (parts.order) std::memcpy(parts.order, w.data() + l.order_at, l.k * 4);
    const std::size_t width = row_bytes(l.k, l.bits);
    parallel_for(l.tiles, threads, [&](std::size_t tile) {
        for (std::size_t lane = 0; lane < kTile && tile * kTile + lane < l.n; ++lane) {
            const std::size_t row = tile * kTile + lane;
            if (parts.codes) std::memset(parts.codes + row * width, 0, width);
            for (std::size_t b = 0; b < l.blocks; ++b) {
                const std::uint8_t* from = w.data() + l.record_at(tile, b);
                const std::size_t start = b * l.block, at = row * l.groups + start / l.group;
                if (parts.scales) parts.scales[at] = load_float(from, l.scale_type, lane);
                if (parts.zeros) parts.zeros[at] = from[l.origins_at + lane];
                if (parts.offsets) parts.offsets[at] = load_float(from + l.origins_at, l.scale_type, lane);
                if (parts.codes)
                    unpack_block(l, from + l.codes_at, start, l.width_of(b), lane, parts.codes + row * width);
            }
        }
    });
}

void gather(const PackedWeight& w, const std::int64_t* index, std::size_t count, const Rows& y, int threads) {
    const Layout& l = w.layout();
    if (y.rows < count || (count && y.stride < l.k)) throw Error("the result of a look-up is too small");
    for (std::size_t i = 0; i < count; ++i)
        if (index[i] < 0 || static_cast<std::uint64_t>(index[i]) >= l.n)
            throw Error("row " + std::to_string(index[i]) + " of a weight of " + std::to_string(l.n) + " rows");
    float levels[256];
    for (int code = 0; code < 256; ++code)
        levels[code] = l.level_count ? l.levels[code % 16] : static_cast<float>(code);
    const auto* order = l.has_order ? reinterpret_cast<const std::int32_t*>(w.data() + l.order_at) : nullptr;
    parallel_for(count, static_cast<std::size_t>(count) * l.k < 1 << 16 ? 1 : threads, [&](std::size_t i) {
        const auto row = static_cast<std::size_t>(index[i]), lane = row % kTile;
        for (std::size_t b = 0; b < l.blocks; ++b) {
            const std::uint8_t* from = w.data() + l.record_at(row / kTile, b);
            const LaneParams group(l, from, lane);
            for (std::size_t o = 0; o < l.width_of(b); ++o) {
                const Place place = place_of(l, lane, o % kStep);
                const std::uint8_t* step = from + l.codes_at + o / kStep * l.step_bytes;
                const unsigned code = step[place.byte] >> place.shift & (l.stored_bits == 4 ? 15u : 255u);
                const std::size_t column = b * l.block + o;
                store_float(y.data, y.type, i * y.stride + static_cast<std::size_t>(order ? order[column] : column),
                            (levels[code] - group.zero) * group.scale + group.offset);
            }
        }
    });
}

}  // namespace woqfx
