// Plain codes into the packed layout.
#include <algorithm>
#include <cstring>

#include "codes.h"
#include "memory.h"
#include "numbers.h"
#include "pool.h"

namespace woqfx {
namespace {

// The rows of one tile, each from its own first number on.
struct TileRows {
    std::size_t count = 0;
    const std::uint8_t *codes[kTile], *scales[kTile], *zeros[kTile], *offsets[kTile];
};

// Four words of each of four rows, as four rows of each word.
using Words = std::uint32_t __attribute__((vector_size(16)));

template <int kBits>
void pack_square(const std::uint8_t* const* rows, std::size_t at, std::uint8_t* const* words) {
    Words r[4];
    for (int i = 0; i < 4; ++i) std::memcpy(&r[i], rows[i] + at, sizeof r[i]);
    const Words a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const Words c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), r[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5), r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
    for (int i = 0; i < 4; ++i) {
        if constexpr (kBits == 4) r[i] = weave(r[i]);
        std::memcpy(words[i], &r[i], sizeof r[i]);
    }
}

// The first `count` words of all rows of a full tile: 4 bytes of a row are a lane's word in a step. A cache line of rows
// at a time, a few rows at a time: rows lie at distances that share few lines of the nearest cache, and that no processor
// fetches ahead by itself.
template <int kBits>
void pack_words(const Layout& l, const TileRows& rows, std::size_t count, std::uint8_t* tile) {
    constexpr std::size_t kLine = 16, kWord = kTile * 4;
    const std::size_t in_block = l.blocks == 1 ? count : l.block / kStep * (kBits / 4);
    std::uint8_t* words[kLine];
    std::uint8_t* block = tile + l.codes_at;
    for (std::size_t first = 0, within = 0; first < count; first += kLine) {
        const std::size_t line = std::min(kLine, count - first);
        for (std::size_t i = 0; i < line; ++i) {
            words[i] = block + within * kWord;
            if (++within == in_block) within = 0, block += l.record_bytes;
        }
        for (std::size_t lane = 0; lane < kTile; lane += 4) {
            for (std::size_t j = lane; j < lane + 4; ++j) __builtin_prefetch(rows.codes[j] + (first + kLine) * 4);
            std::size_t i = 0;
            std::uint8_t* to[4];
            for (; i + 4 <= line; i += 4) {
                for (std::size_t j = 0; j < 4; ++j) to[j] = words[i + j] + lane * 4;
                pack_square<kBits>(rows.codes + lane, (first + i) * 4, to);
            }
            for (; i < line; ++i)
                for (std::size_t j = lane; j < lane + 4; ++j) {
                    std::uint32_t word;
                    std::memcpy(&word, rows.codes[j] + (first + i) * 4, 4);
                    if constexpr (kBits == 4) word = weave(word);
                    std::memcpy(words[i] + j * 4, &word, 4);
                }
        }
    }
}

std::uint32_t plain_code(const std::uint8_t* row, std::size_t k, int bits) {
    const std::size_t bit = k * static_cast<std::size_t>(bits);
    const unsigned shift = bit % 8;
    std::uint32_t word = row[bit / 8];
    if (shift + static_cast<unsigned>(bits) > 8) word |= static_cast<std::uint32_t>(row[bit / 8 + 1]) << 8;
    return word >> shift & ((1u << bits) - 1);
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

// How many inputs of each row of a full tile are packed word by word: none where words would cross blocks.
std::size_t inputs_in_words(const Layout& l) {
    if (l.bits != l.stored_bits || (l.blocks > 1 && l.block % kStep != 0)) return 0;
    return l.k / kStep * kStep;
}

void pack_codes(const Layout& l, const TileRows& rows, std::uint8_t* tile) {
    const std::size_t in_words = rows.count == kTile ? inputs_in_words(l) : 0;
    const std::size_t count = in_words * static_cast<std::size_t>(l.bits) / 32;
    if (in_words) l.bits == 4 ? pack_words<4>(l, rows, count, tile) : pack_words<8>(l, rows, count, tile);
    for (std::size_t b = 0; b < l.blocks; ++b) {
        const std::size_t start = b * l.block, width = l.width_of(b);
        const std::size_t done = in_words > start ? std::min(in_words - start, width) : 0;
        if (done < width)
            for (std::size_t lane = 0; lane < rows.count; ++lane)
                pack_codes(l, rows.codes[lane], start, done, width, lane, tile + b * l.record_bytes + l.codes_at);
    }
}

// A number of each group of each row to its lane of every block, by copy(to, from, group).
template <class Copy>
void spread(const Layout& l, const std::uint8_t* const* rows, std::size_t count, std::size_t bytes, std::uint8_t* at,
            Copy copy) {
    constexpr std::size_t kBlocks = 32;    // of which all lanes stay in the nearest cache
    for (std::size_t first = 0; first < l.blocks; first += kBlocks) {
        const std::size_t blocks = std::min(kBlocks, l.blocks - first);
        std::size_t groups[kBlocks];
        for (std::size_t b = 0; b < blocks; ++b) groups[b] = (first + b) * l.block / l.group;
        std::uint8_t* const to = at + first * l.record_bytes;
        for (std::size_t lane = 0; lane < count; ++lane)
            for (std::size_t b = 0; b < blocks; ++b) copy(to + b * l.record_bytes + lane * bytes, rows[lane], groups[b]);
    }
}

template <class T>
void copy_one(std::uint8_t* to, const std::uint8_t* row, std::size_t group) {
    std::memcpy(to, row + group * sizeof(T), sizeof(T));
}

// Scales or offsets.
void spread_floats(const Layout& l, const std::uint8_t* const* rows, std::size_t count, std::uint8_t* at) {
    const std::size_t bytes = scale_bytes(l.scale_type);
    if (bytes == 4)
        spread(l, rows, count, bytes, at, copy_one<std::uint32_t>);
    else
        spread(l, rows, count, bytes, at, copy_one<std::uint16_t>);
}

void pack_tile(const Layout& l, const TileRows& rows, std::uint8_t* tile) {
    for (std::size_t lane = 0; lane < rows.count; ++lane) __builtin_prefetch(rows.codes[lane]);
    std::memset(tile, 0, l.tile_bytes);
    spread_floats(l, rows.scales, rows.count, tile);
    if (l.origin == Origin::zeros) spread(l, rows.zeros, rows.count, 1, tile + l.origins_at, copy_one<std::uint8_t>);
    if (l.origin == Origin::offsets) spread_floats(l, rows.offsets, rows.count, tile + l.origins_at);
    pack_codes(l, rows, tile);
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

// What `parts` have in common, and their rows together.
Header header_of(const std::vector<WeightView>& parts) {
    if (parts.empty()) throw Error("no weight to pack: give one, or some whose rows lie one after the other");
    const WeightView& w = parts[0];
    Header header{};
    std::memcpy(header.magic, "woqfxpk", 8);
    header.version = kLayoutVersion;
    header.bits = static_cast<std::uint32_t>(w.bits);
    header.k = w.k, header.group = w.group;
    if (w.zeros && w.offsets) throw Error("a weight has zeros or offsets, not both");
    header.scale_type = w.scale_type;
    header.origin = w.zeros ? Origin::zeros : w.offsets ? Origin::offsets : Origin::middle;
    header.has_order = w.order != nullptr;
    if (w.levels) {
        header.level_count = static_cast<std::uint32_t>(w.level_count);
        for (std::size_t i = 0; i < w.level_count && i < 16; ++i) header.levels[i] = w.levels[i];
    }
    for (const WeightView& other : parts) {
        if (other.k != w.k || other.group != w.group || other.bits != w.bits || other.scale_type != w.scale_type ||
            !other.zeros != !w.zeros || !other.offsets != !w.offsets || other.levels != w.levels ||
            other.level_count != w.level_count || other.order != w.order)
            throw Error("weights that differ in more than their rows cannot be packed as one: pack each by itself");
        if (__builtin_add_overflow(header.n, other.n, &header.n)) throw Error("a packed weight would exceed memory");
    }
    return header;
}

// The rows of tile number `tile` of all parts together.
TileRows rows_of(const std::vector<WeightView>& parts, const Layout& l, std::size_t tile) {
    TileRows rows;
    const std::size_t code_bytes = row_bytes(l.k, l.bits), float_bytes = l.groups * scale_bytes(l.scale_type);
    std::size_t row = tile * kTile;
    for (const WeightView& w : parts) {
        for (; row < w.n && rows.count < kTile; ++row, ++rows.count) {
            const auto at = [&](const void* data, std::size_t width) {
                return data ? static_cast<const std::uint8_t*>(data) + row * width : nullptr;
            };
            rows.codes[rows.count] = at(w.codes, code_bytes), rows.scales[rows.count] = at(w.scales, float_bytes);
            rows.zeros[rows.count] = at(w.zeros, l.groups), rows.offsets[rows.count] = at(w.offsets, float_bytes);
        }
        if (rows.count == kTile) break;
        row -= w.n;
    }
    return rows;
}

}  // namespace

PackedWeight pack(const WeightView& w, int threads) { return pack(std::vector<WeightView>{w}, threads); }

PackedWeight pack(const std::vector<WeightView>& parts, int threads) {
    Header header = header_of(parts);
    const Layout l = Layout::of(header);  // sizes are known to be sane from here on
    header.size = l.size;
    const std::int32_t* order = parts[0].order;
    if (order) check_order(order, l.k);

    const std::shared_ptr<std::uint8_t> memory = weight_memory(l.size);
    std::memcpy(memory.get(), &header, sizeof header);
    if (order) {
        std::memset(memory.get() + l.order_at, 0, l.tiles_at - l.order_at);
        std::memcpy(memory.get() + l.order_at, order, l.k * 4);
    }
    // Tiles of one huge page are one thread's: two that touch it while it is fresh would both fill it with zeros.
    const std::size_t step = l.size < kHugePage ? 1 : std::max<std::size_t>(1, kHugePage / l.tile_bytes);
    parallel_for((l.tiles + step - 1) / step, threads, [&](std::size_t i) {
        for (std::size_t tile = i * step; tile < std::min(l.tiles, (i + 1) * step); ++tile)
            pack_tile(l, rows_of(parts, l, tile), memory.get() + l.record_at(tile, 0));
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

}  // namespace woqfx
