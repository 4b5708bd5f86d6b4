// Plain codes into the packed layout, and back.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "lane_params.h"
#include "layout.h"
#include "memory.h"
#include "numbers.h"
#include "pool.h"

namespace woqfx {
namespace {

std::size_t row_bytes(std::size_t k, int bits) { return (k * static_cast<std::size_t>(bits) + 7) / 8; }

std::uint32_t plain_code(const std::uint8_t* row, std::size_t k, int bits) {
    const std::size_t bit = k * static_cast<std::size_t>(bits);
    const unsigned shift = bit % 8;
    std::uint32_t word = row[bit / 8];
    if (shift + static_cast<unsigned>(bits) > 8) word |= static_cast<std::uint32_t>(row[bit / 8 + 1]) << 8;
    return word >> shift & ((1u << bits) - 1);
}

// The order of nibbles in a step (layout.h): input b and input b + 4 share byte b. Its own kind of inverse below.
std::uint32_t weave(std::uint32_t w) {
    w = (w & 0xff0000ff) | (w & 0x0000ff00) << 8 | (w >> 8 & 0x0000ff00);
    return (w & 0xf00ff00f) | (w & 0x00f000f0) << 4 | (w >> 4 & 0x00f000f0);
}

std::uint32_t unweave(std::uint32_t w) {
    w = (w & 0xf00ff00f) | (w & 0x00f000f0) << 4 | (w >> 4 & 0x00f000f0);
    return (w & 0xff0000ff) | (w & 0x0000ff00) << 8 | (w >> 8 & 0x0000ff00);
}

// Where input `o` of a step has its code in a step's bytes: byte, and shift in it.
struct Place {
    std::size_t byte;
    unsigned shift;
};

Place place_of(const Layout& l, std::size_t lane, std::size_t o) {
    if (l.stored_bits == 4) return {lane * 4 + o % 4, static_cast<unsigned>(o / 4 * 4)};
    return {o / 4 * kTile * 4 + lane * 4 + o % 4, 0};
}

// Whole steps of a block, where rows have them on whole bytes: a word of each row, side by side. Says how many inputs.
std::size_t pack_steps(const Layout& l, const std::uint8_t* rows, std::size_t row_width, std::size_t lanes,
                       std::size_t start, std::size_t width, std::uint8_t* steps) {
    if (l.bits != l.stored_bits || start * static_cast<std::size_t>(l.bits) % 8 != 0) return 0;
    const std::uint8_t* from = rows + start * static_cast<std::size_t>(l.bits) / 8;
    const std::uint8_t* const end = from + width / kStep * static_cast<std::size_t>(l.bits);
    for (; from < end; from += 4, steps += kTile * 4) {
        std::uint32_t words[kTile] = {};
        for (std::size_t lane = 0; lane < lanes; ++lane) std::memcpy(&words[lane], from + lane * row_width, 4);
        if (l.stored_bits == 4)
            for (std::uint32_t& word : words) word = weave(word);
        std::memcpy(steps, words, sizeof words);
    }
    return width / kStep * kStep;
}

// A row's inputs of a block from `done`, a whole step, on: code by code.
void pack_codes(const Layout& l, const std::uint8_t* row, std::size_t start, std::size_t done, std::size_t width,
                std::size_t lane, std::uint8_t* steps) {
    steps += done / kStep * l.step_bytes;
    for (std::size_t o = 0; done < width; ++done) {
        const Place place = place_of(l, lane, o);
        steps[place.byte] = static_cast<std::uint8_t>(
            steps[place.byte] | plain_code(row, start + done, l.bits) << place.shift);
        if (++o == kStep) o = 0, steps += l.step_bytes;
    }
}

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

// The smallest type that holds every scale, and every offset, exactly.
Float smallest_type(const WeightView& w, std::size_t count) {
    if (w.scale_type != Float::f32) return w.scale_type;
    bool f16 = true, bf16 = true;
    for (const void* numbers : {w.scales, w.offsets}) {
        const float* values = static_cast<const float*>(numbers);
        for (std::size_t i = 0; values && i < count && (f16 || bf16); ++i) {
            f16 = f16 && from_f16(to_f16(values[i])) == values[i];
            bf16 = bf16 && from_bf16(to_bf16(values[i])) == values[i];
        }
    }
    return f16 ? Float::f16 : bf16 ? Float::bf16 : Float::f32;
}

// A scale or an offset to its lane; both types hold it exactly.
void copy_number(const void* numbers, Float given, std::size_t at, std::uint8_t* to, Float type, std::size_t lane) {
    const auto* from = static_cast<const std::uint8_t*>(numbers);
    if (given != type)
        store_float(to, type, lane, load_float(numbers, given, at));
    else if (type == Float::f32)
        std::memcpy(to + lane * 4, from + at * 4, 4);
    else
        std::memcpy(to + lane * 2, from + at * 2, 2);
}

Header read_header(const std::uint8_t* data, std::size_t size) {
    Header header{};
    if (size < sizeof header) throw Error("not a packed weight: " + std::to_string(size) + " bytes");
    std::memcpy(&header, data, sizeof header);
    return header;
}

void check_order(const std::int32_t* order, std::size_t k) {
    std::vector<bool> seen(k);
    for (std::size_t j = 0; j < k; ++j) {
        const auto input = static_cast<std::size_t>(static_cast<std::uint32_t>(order[j]));
        if (input >= k || seen[input])
            throw Error("the order of a weight's inputs is not a permutation of " + std::to_string(k));
        seen[input] = true;
    }
}

}  // namespace

PackedWeight pack(const WeightView& w, int threads) {
    Header header{};
    std::memcpy(header.magic, "woqfxpk", 8);
    header.version = kLayoutVersion;
    header.bits = static_cast<std::uint32_t>(w.bits);
    header.n = w.n, header.k = w.k, header.group = w.group;
    if (w.zeros && w.offsets) throw Error("a weight has zeros or offsets, not both");
    header.origin = w.zeros ? Origin::zeros : w.offsets ? Origin::offsets : Origin::middle;
    header.has_order = w.order != nullptr;
    if (w.levels) {
        header.level_count = static_cast<std::uint32_t>(w.level_count);
        for (std::size_t i = 0; i < w.level_count && i < 16; ++i) header.levels[i] = w.levels[i];
    }
    const Layout checked = Layout::of(header);  // sizes are known to be sane from here on
    header.scale_type = smallest_type(w, checked.n * checked.groups);
    const Layout l = Layout::of(header);
    header.size = l.size;
    if (w.order) check_order(w.order, l.k);

    const std::shared_ptr<std::uint8_t> memory = weight_memory(l.size);
    std::memcpy(memory.get(), &header, sizeof header);
    if (w.order) {
        std::memset(memory.get() + l.order_at, 0, l.tiles_at - l.order_at);
        std::memcpy(memory.get() + l.order_at, w.order, l.k * 4);
    }
    const std::size_t width = row_bytes(l.k, l.bits);
    const auto pack_tile = [&](std::size_t tile) {
        std::uint8_t* to = memory.get() + l.record_at(tile, 0);
        std::memset(to, 0, l.tile_bytes);
        const std::size_t first = tile * kTile, lanes = std::min(kTile, l.n - first);
        const std::uint8_t* const rows = w.codes + first * width;
        for (std::size_t b = 0; b < l.blocks; ++b, to += l.record_bytes) {
            const std::size_t start = b * l.block, group = start / l.group, wide = l.width_of(b);
            for (std::size_t lane = 0; lane < lanes; ++lane) {
                const std::size_t at = (first + lane) * l.groups + group;
                copy_number(w.scales, w.scale_type, at, to, l.scale_type, lane);
                if (w.zeros) to[l.origins_at + lane] = w.zeros[at];
                if (w.offsets) copy_number(w.offsets, w.scale_type, at, to + l.origins_at, l.scale_type, lane);
            }
            const std::size_t done = pack_steps(l, rows, width, lanes, start, wide, to + l.codes_at);
            if (done < wide)
                for (std::size_t lane = 0; lane < lanes; ++lane)
                    pack_codes(l, rows + lane * width, start, done, wide, lane, to + l.codes_at);
        }
    };
    // Tiles of one huge page are one thread's: two that touch it while it is fresh would both fill it with zeros.
    const std::size_t step = l.size < kHugePage ? 1 : std::max<std::size_t>(1, kHugePage / l.tile_bytes);
    parallel_for((l.tiles + step - 1) / step, threads, [&](std::size_t i) {
        for (std::size_t tile = i * step; tile < std::min(l.tiles, (i + 1) * step); ++tile) pack_tile(tile);
    });

    PackedWeight packed;
    packed.bytes_ = memory, packed.size_ = l.size, packed.layout_ = std::make_shared<const Layout>(l);
    return packed;
}

PackedWeight PackedWeight::from_bytes(const std::uint8_t* data, std::size_t size) {
    const std::shared_ptr<std::uint8_t> memory = weight_memory(size);
    std::memcpy(memory.get(), data, size);
    return from_shared(memory, size);
}

PackedWeight PackedWeight::from_shared(std::shared_ptr<const std::uint8_t> bytes, std::size_t size) {
    const Header header = read_header(bytes.get(), size);
    const Layout l = Layout::of(header);
    if (header.size != l.size || size != l.size)
        throw Error("a packed weight of " + std::to_string(size) + " bytes, where its header needs " +
                    std::to_string(l.size) + ": pack the weight again");
    if (reinterpret_cast<std::uintptr_t>(bytes.get()) % 64 != 0)
        throw Error("a packed weight must begin at a multiple of 64 bytes: copy it");
    if (l.has_order) check_order(reinterpret_cast<const std::int32_t*>(bytes.get() + l.order_at), l.k);
    PackedWeight packed;
    packed.bytes_ = std::move(bytes), packed.size_ = size, packed.layout_ = std::make_shared<const Layout>(l);
    return packed;
}

std::size_t PackedWeight::n() const { return layout_->n; }
std::size_t PackedWeight::k() const { return layout_->k; }
std::size_t PackedWeight::group() const { return layout_->group; }
int PackedWeight::bits() const { return layout_->bits; }
Float PackedWeight::scale_type() const { return layout_->scale_type; }
bool PackedWeight::has_zeros() const { return layout_->origin == Origin::zeros; }
bool PackedWeight::has_offsets() const { return layout_->origin == Origin::offsets; }
bool PackedWeight::has_order() const { return layout_->has_order; }
bool PackedWeight::is_codebook() const { return layout_->level_count != 0; }

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
