#include "multiplication.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "numbers.h"

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

// With outliers there may be one for each activation, which takes room.
constexpr std::size_t kMostRows = 240, kMostRowsWithOutliers = 48;

// The next panel for `left` of so many rows: the largest; near the end, two of about half a size rather than a large one
// and a small one; and the smallest that holds the rest.
int panel_rows(const Kernel& kernel, std::size_t rows, std::size_t left, bool by_tiles) {
    if (by_tiles) return static_cast<int>(std::min<std::size_t>(left, 16));
    const auto most = static_cast<std::size_t>(rows <= static_cast<std::size_t>(kernel.few_rows) ? kernel.few_rows
                                                                                                 : kernel.many_rows);
    const std::size_t share = left >= 2 * most ? most : left > most ? (left + 1) / 2 : left;
    const int* size = kernel.panel_rows;
    while (*size > 1 && static_cast<std::size_t>(size[1]) >= share) ++size;
    return *size;
}

}  // namespace

std::string kernel_name(Compute compute, Isa isa) {
    return std::string(name(isa)) + ": " + kernels_of(isa).of[static_cast<int>(compute)].label;
}

Multiplication::Multiplication(const PackedWeight& weight, Compute compute, float outlier_threshold, const Isa* isa)
    : weight_(weight),
      kernel_(&kernels_of(isa ? *isa : best_isa()).of[static_cast<int>(compute)]),
      operands_(make_operands(weight.layout(), *kernel_)),
      compute_(compute),
      threshold_(kernel_->word == Word::int8x4 ? outlier_threshold : 0) {}

std::size_t Multiplication::most_rows() const { return threshold_ > 0 ? kMostRowsWithOutliers : kMostRows; }

void Activations::plan(const Multiplication& by, std::size_t first, std::size_t rows) {
    by_ = &by, first_ = first, rows_ = rows;
    const Kernel& kernel = *by.kernel_;
    const Layout& l = by.layout();
    const auto word_inputs = kernel.word == Word::f32 ? 1u : kernel.word == Word::bf16x2 ? 2u : 4u;
    constexpr std::size_t kLine = 16, kBlockWords = sizeof(BlockOfRow) / 4;
    blocks_at_ = l.steps * kStep / word_inputs;
    // An odd number of lines: rows side by side then lie in different sets of a cache.
    row_words_ = (divide_up(blocks_at_ + l.blocks * kBlockWords, kLine) | 1) * kLine;

    by_tiles_ = kernel.tiles_from && rows >= kernel.tiles_from;
    panels_.clear();
    std::size_t padded = 0;
    for (std::size_t done = 0; done < rows;) {
        const int size = panel_rows(kernel, rows, rows - done, by_tiles_);
        const std::size_t used = std::min(rows - done, static_cast<std::size_t>(size));
        panels_.push_back({size, static_cast<int>(used), nullptr, row_words_, blocks_at_, first + done});
        done += used, padded = done - used + static_cast<std::size_t>(size);
    }
    // Only the last panel may have more rows than there are; those are zeros.
    words_ = reinterpret_cast<std::uint32_t*>(memory_.get(padded * row_words_ * 4));
    std::memset(words_ + rows * row_words_, 0, (padded - rows) * row_words_ * 4);
    for (Panel& panel : panels_) panel.words = words_ + (panel.first - first) * row_words_;
    if (by.threshold_ > 0) outliers_.resize(rows * l.k), outlier_begin_.assign(rows + 1, 0);
}

void Activations::prepare(std::size_t row, const ConstRows& x) {
    const Layout& l = by_->layout();
    const Operands& operands = by_->operands_;
    const float threshold = by_->threshold_;
    const Source source{&l,
                        l.has_order ? reinterpret_cast<const std::int32_t*>(by_->weight().data() + l.order_at) : nullptr,
                        x.data,
                        x.type,
                        x.stride,
                        threshold,
                        by_->compute_ == Compute::bf16,
                        l.origin == Origin::middle ? operands.origin - operands.implied_zero : 1,
                        operands.unit};
    thread_local Workspace memory;
    auto* buffer = reinterpret_cast<float*>(memory.get(l.steps * kStep * 4));
    const std::size_t place = row - first_;
    std::uint32_t* const words = words_ + place * row_words_;
    auto* const blocks = reinterpret_cast<BlockOfRow*>(words + blocks_at_);
    Outlier* const found = threshold > 0 ? outliers_.data() + place * l.k : nullptr;
    const std::size_t count = by_->kernel_->prepare(source, row, words, blocks, buffer, found);
    if (found) outlier_begin_[place + 1] = count;
}

void Activations::finish() {
    if (!(by_->threshold_ > 0)) return;
    const std::size_t k = by_->layout().k;
    Outlier* found = outliers_.data();
    for (std::size_t row = 0; row < rows_; ++row) {  // close the gaps
        const std::size_t count = outlier_begin_[row + 1];
        std::memmove(found + outlier_begin_[row], found + row * k, count * sizeof(Outlier));
        outlier_begin_[row + 1] = outlier_begin_[row] + count;
    }
}

void Activations::multiply(const Rows& y, const float* bias, std::size_t begin, std::size_t end) const {
    const bool any = by_->threshold_ > 0 && outlier_begin_[rows_] > 0;
    const Product product{&by_->layout(),
                          by_->weight().data(),
                          &by_->operands_,
                          panels_.data(),
                          panels_.size(),
                          by_tiles_,
                          bias,
                          y.data,
                          y.type,
                          y.stride,
                          outliers_.data(),
                          any ? outlier_begin_.data() : nullptr,
                          first_};
    thread_local Workspace memory;
    by_->kernel_->multiply(product, begin, end, memory.get(by_->kernel_->scratch_bytes(product)));
}

}  // namespace woqfx
