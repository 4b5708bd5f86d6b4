// y = x @ W.T + bias: checks, activations into panels, tiles to threads.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernel.h"
#include "numbers.h"
#include "pool.h"

namespace woqfx {
namespace {

const Kernels& kernels_of(Isa isa) {
    if (!supported(isa)) throw Error(std::string("this CPU does not have the instruction set ") + name(isa));
    switch (isa) {
#if defined(WOQFX_X86)
        case Isa::avx2: return avx2_kernels();
        case Isa::avx_vnni: return avx_vnni_kernels();
        case Isa::avx512: return avx512_kernels();
        case Isa::avx512_vnni: return avx512_vnni_kernels();
        case Isa::avx512_bf16: return avx512_bf16_kernels();
        case Isa::amx: return amx_kernels();
#endif
        default: return portable_kernels();
    }
}

// Memory that a thread keeps from call to call.
class Workspace {
public:
    std::uint8_t* get(std::size_t size) {
        if (size > size_) {
            memory_.reset(static_cast<std::uint8_t*>(std::aligned_alloc(64, (size + 4095) / 4096 * 4096)));
            size_ = memory_ ? size : 0;
            if (!memory_) throw std::bad_alloc();
        }
        return memory_.get();
    }

private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::uint8_t, Free> memory_;
    std::size_t size_ = 0;
};

// What codes become. A codebook's int8 levels are the reference's: round(level * (127 / reach)), worth reach / 127.
Operands make_operands(const Layout& l, const Kernel& k) {
    Operands o{};
    const bool codebook = l.level_count != 0, bytes = k.word == Word::int8x4;
    o.unit = 1;
    if (!codebook) {
        o.implied_zero = l.middle();
        o.origin = !bytes ? l.middle() : k.unsigned_codes ? 0 : l.stored_bits == 8 ? 128 : l.middle();
    } else if (bytes && k.unsigned_codes) {
        o.implied_zero = 128;
    }
    float reach = 0;
    for (std::size_t i = 0; i < l.level_count; ++i) reach = std::fmax(reach, std::fabs(l.levels[i]));
    const auto to_int8 = static_cast<float>(127.0 / static_cast<double>(reach));
    if (codebook && bytes) o.unit = static_cast<float>(static_cast<double>(reach) / 127.0);
    for (std::size_t i = 0; i < 16; ++i) {
        const float level = codebook ? l.levels[i] : static_cast<float>(static_cast<int>(i) - o.origin);
        if (bytes) {
            const auto whole = static_cast<int>(std::nearbyint(codebook ? level * to_int8 : level));
            o.table[i] = static_cast<std::uint8_t>(whole + (codebook ? o.implied_zero : 0));
        } else if (k.word == Word::bf16x2) {
            o.table[i] = to_bf16(level);
        } else {
            o.table[i] = bits_of(k.bf16_by_fp32 ? from_bf16(to_bf16(level)) : level);
        }
    }
    return o;
}

// Rows are multiplied so many at a time that their panels and totals share the cache with the decoded weights. With
// outliers there may be one for each activation, which takes room.
constexpr std::size_t kChunk = 240, kChunkWithOutliers = 48;

// The next panel for so many rows that are left: the largest; near the end, two of about half a size rather than a
// large one and a small one; and the smallest that holds the rest.
int panel_rows(const Kernel& kernel, std::size_t rows, bool row_by_row) {
    if (row_by_row) return static_cast<int>(std::min<std::size_t>(rows, 16));
    const auto most = static_cast<std::size_t>(kernel.panel_rows[0]);
    if (rows >= 2 * most) return kernel.panel_rows[0];
    const std::size_t share = rows > most ? (rows + 1) / 2 : rows;
    const int* size = kernel.panel_rows;
    while (*size > 1 && static_cast<std::size_t>(size[1]) >= share) ++size;
    return *size;
}

void multiply_chunk(const PackedWeight& w, const Kernel& kernel, const Operands& operands, const ConstRows& x,
                    const Rows& y, const LinearOptions& options, std::size_t first, std::size_t rows) {
    const Layout& l = w.layout();
    const auto word_inputs = kernel.word == Word::f32 ? 1u : kernel.word == Word::bf16x2 ? 2u : 4u;
    const std::size_t row_words = l.steps * kStep / word_inputs;

    const bool row_by_row = kernel.row_by_row_from && rows >= kernel.row_by_row_from;
    thread_local std::vector<Panel> panels;
    panels.clear();
    std::size_t padded = 0;
    for (std::size_t done = 0; done < rows;) {
        const int size = panel_rows(kernel, rows - done, row_by_row);
        const std::size_t used = std::min(rows - done, static_cast<std::size_t>(size));
        const auto side_by_side = static_cast<std::size_t>(size);
        panels.push_back({size, static_cast<int>(used), nullptr, row_by_row ? 1 : side_by_side,
                          row_by_row ? row_words : 1, nullptr, nullptr, first + done});
        done += used, padded += static_cast<std::size_t>(size);
    }
    thread_local Workspace prepared;
    auto* words = reinterpret_cast<std::uint32_t*>(prepared.get(padded * (row_words + 2 * l.blocks) * 4));
    auto* steps = reinterpret_cast<float*>(words + padded * row_words);
    auto* starts = reinterpret_cast<std::uint32_t*>(steps + padded * l.blocks);
    for (Panel& panel : panels) {
        const auto size = static_cast<std::size_t>(panel.rows);
        panel.words = words, panel.steps = steps, panel.starts = starts;
        words += size * row_words, steps += size * l.blocks, starts += size * l.blocks;
        if (panel.used < panel.rows) {
            std::memset(panel.words, 0, size * row_words * 4);
            std::memset(panel.steps, 0, size * l.blocks * 4);
            std::memset(panel.starts, 0, size * l.blocks * 4);
        }
    }

    const float threshold = kernel.word == Word::int8x4 ? options.outlier_threshold : 0;
    thread_local std::vector<Outlier> outliers;
    thread_local std::vector<std::size_t> outlier_begin;
    if (threshold > 0) outliers.resize(rows * l.k), outlier_begin.assign(rows + 1, 0);
    const Source source{&l,
                        l.has_order ? reinterpret_cast<const std::int32_t*>(w.data() + l.order_at) : nullptr,
                        x.data,
                        x.type,
                        x.stride,
                        threshold,
                        options.compute == Compute::bf16,
                        l.has_zeros ? 1 : operands.origin - operands.implied_zero,
                        operands.unit};
    Outlier* found = outliers.data();
    std::size_t* counts = outlier_begin.data();
    const int threads = rows * l.k < 1 << 15 ? 1 : options.threads;
    parallel_for(panels.size(), threads, [&, panels = panels.data()](std::size_t i) {
        thread_local Workspace memory;
        auto* buffer = reinterpret_cast<float*>(memory.get(l.steps * kStep * 5));
        for (int r = 0; r < panels[i].used; ++r) {
            const std::size_t row = panels[i].first - first + static_cast<std::size_t>(r);
            Outlier* to = threshold > 0 ? found + row * l.k : nullptr;
            const std::size_t count = kernel.prepare(source, panels[i], r, buffer, to);
            if (to) counts[row + 1] = count;
        }
    });
    if (threshold > 0) {  // close the gaps
        for (std::size_t row = 0; row < rows; ++row) {
            const std::size_t count = outlier_begin[row + 1];
            std::memmove(found + outlier_begin[row], found + row * l.k, count * sizeof(Outlier));
            outlier_begin[row + 1] = outlier_begin[row] + count;
        }
    }

    const bool any = threshold > 0 && outlier_begin[rows] > 0;
    const Product product{&l,   w.data(), &operands, panels.data(), panels.size(),          row_by_row, options.bias,
                          y.data, y.type,   y.stride,  found,         any ? counts : nullptr, first};
    const std::size_t scratch = kernel.scratch_bytes(product);
    // A few parts for each thread, so that one that starts late does less; in pairs of tiles, which few rows take at
    // once.
    const auto threads_asked = static_cast<std::size_t>(options.threads < 1 ? max_threads() : options.threads);
    const bool few_tiles = l.tiles < 8 * threads_asked;
    const std::size_t share = divide_up(l.tiles, few_tiles ? threads_asked : 4 * threads_asked);
    const std::size_t wide = few_tiles ? share : (share + 1) / 2 * 2;
    parallel_for(divide_up(l.tiles, wide), options.threads, [&](std::size_t part) {
        thread_local Workspace memory;
        kernel.multiply(product, part * wide, std::min(l.tiles, (part + 1) * wide), memory.get(scratch));
    });
}

void check(const PackedWeight& w, const ConstRows& x, const Rows& y, const LinearOptions& options) {
    const Layout& l = w.layout();
    if (x.type > Float::bf16 || y.type > Float::bf16 || options.compute > Compute::int8)
        throw Error("no such type of number");
    if (x.rows != y.rows || (x.rows > 1 && (x.stride < l.k || y.stride < l.n)))
        throw Error("x has " + std::to_string(x.rows) + " rows at a distance of " + std::to_string(x.stride) +
                    ", y " + std::to_string(y.rows) + " at " + std::to_string(y.stride) + ", where the weight is [" +
                    std::to_string(l.n) + ", " + std::to_string(l.k) + "]");
    if (!(options.outlier_threshold >= 0)) throw Error("an outlier threshold is 0 (none) or above");
}

}  // namespace

std::string kernel_name(Compute compute, Isa isa) {
    return std::string(name(isa)) + ": " + kernels_of(isa).of[static_cast<int>(compute)].label;
}

void linear(const PackedWeight& w, const ConstRows& x, const Rows& y, const LinearOptions& options) {
    check(w, x, y, options);
    const Kernel& kernel = kernels_of(options.isa ? *options.isa : best_isa()).of[static_cast<int>(options.compute)];
    const Operands operands = make_operands(w.layout(), kernel);
    const std::size_t chunk = options.outlier_threshold > 0 ? kChunkWithOutliers : kChunk;
    for (std::size_t first = 0; first < x.rows; first += chunk)
        multiply_chunk(w, kernel, operands, x, y, options, first, std::min(chunk, x.rows - first));
}

}  // namespace woqfx
