// Quantizing: the grids, the choice of kernels, and the sharing out of rows.
#include "encode.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "encode_rows.h"
#include "pool.h"

namespace woqfx::encode {
namespace {

// Numbers that a thread takes at a time.
constexpr std::size_t kPiece = std::size_t{1} << 18;

void check_bits(int bits) {
    if (bits < 1 || bits > 8) throw Error("a grid has 1 to 8 bits, not " + std::to_string(bits));
}

void check(const Weight& weight) {
    if (weight.rows == 0 || weight.columns == 0) throw Error("a weight without numbers has no codes");
    if (weight.group == 0 || weight.group > weight.columns) {
        throw Error("groups of " + std::to_string(weight.group) + " do not fit rows of " +
                    std::to_string(weight.columns));
    }
    if (weight.columns > std::numeric_limits<std::size_t>::max() / 256 / weight.rows) {
        throw Error("a weight of " + std::to_string(weight.rows) + " x " + std::to_string(weight.columns) +
                    " is larger than any memory");
    }
}

const RowKernels& kernels(Isa isa) {
    if (!supported(isa)) throw Error(std::string("this CPU does not have the instruction set ") + name(isa));
    switch (isa) {
#if defined(WOQFX_X86)
        case Isa::avx2:
        case Isa::avx_vnni: return avx2_rows;
        case Isa::avx512:
        case Isa::avx512_vnni:
        case Isa::avx512_bf16:
        case Isa::amx: return avx512_rows;
#endif
        default: return portable_rows;
    }
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Calls work(begin, end, scratch) for pieces of all rows.
template <class Work>
void share_out(const Weight& weight, int threads, Work work) {
    const std::size_t rows = std::max<std::size_t>(1, kPiece / weight.columns);
    const std::size_t scratch = scratch_floats(weight) * sizeof(float);
    parallel_for((weight.rows + rows - 1) / rows, threads, [&](std::size_t piece) {
        const std::unique_ptr<void, Free> memory(std::aligned_alloc(64, scratch));
        if (!memory) throw std::bad_alloc();
        const std::size_t begin = piece * rows;
        work(begin, std::min(begin + rows, weight.rows), static_cast<float*>(memory.get()));
    });
}

}  // namespace

Grid Grid::integer(int bits, bool full_range, bool symmetric) {
    check_bits(bits);
    Grid grid;
    grid.fit = !symmetric ? Fit::asymmetric : full_range ? Fit::full_range : Fit::clipped;
    grid.bits = bits;
    grid.middle = static_cast<float>(1 << (bits - 1));
    grid.top = static_cast<float>((1 << bits) - 1);
    if (grid.fit == Fit::clipped && bits == 1) throw Error("a grid of 1 bit that is not full_range has no step");
    return grid;
}

Grid Grid::codebook(int bits, const float* levels, std::size_t count) {
    check_bits(bits);
    if (count == 0 || count > kMaxLevels || count > std::size_t{1} << bits) {
        throw Error("a codebook of " + std::to_string(count) + " levels in " + std::to_string(bits) + " bits");
    }
    Grid grid;
    grid.fit = Fit::codebook;
    grid.bits = bits;
    grid.empty = std::numeric_limits<float>::min();
    float reach = 0;
    std::vector<std::pair<float, std::int32_t>> ranking;
    for (std::size_t code = 0; code < count; ++code) {
        const float level = levels[code] + 0.0f;  // -0 + 0 is 0
        if (!std::isfinite(level)) throw Error("level " + std::to_string(code) + " of a codebook is not finite");
        if (level == 0) grid.empty = 1;
        grid.levels[code] = levels[code];
        reach = std::max(reach, std::abs(level));
        ranking.emplace_back(level, static_cast<std::int32_t>(code));
    }
    if (reach == 0) throw Error("all levels of a codebook are 0");
    grid.reach = reach;
    std::sort(ranking.begin(), ranking.end());  // of equal levels the first code comes first, and stays
    const auto same_level = [](const auto& a, const auto& b) { return a.first == b.first; };
    ranking.erase(std::unique(ranking.begin(), ranking.end(), same_level), ranking.end());
    std::fill_n(grid.thresholds, kMaxLevels, std::numeric_limits<float>::infinity());
    for (std::size_t rank = 0; rank < ranking.size(); ++rank) {
        grid.ranked[rank] = ranking[rank].first;
        grid.codes[rank] = ranking[rank].second;
        if (rank > 0) grid.thresholds[rank - 1] = (ranking[rank].first + ranking[rank - 1].first) / 2;
    }
    return grid;
}

void nearest(const NearestJob& job, int threads, Isa isa) {
    check(job.weight);
    if (job.search.count == 0) throw Error("a search among no ratios");
    const RowKernels& rows = kernels(isa);
    share_out(job.weight, threads,
              [&](auto begin, auto end, float* scratch) { rows.nearest(job, begin, end, scratch); });
}

void square_error(const ErrorJob& job, int threads, Isa isa) {
    check(job.weight);
    const RowKernels& rows = kernels(isa);
    share_out(job.weight, threads,
              [&](auto begin, auto end, float* scratch) { rows.square_error(job, begin, end, scratch); });
}

}  // namespace woqfx::encode
