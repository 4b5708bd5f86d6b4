// y = x @ W.T + bias: checks, and the steps of a product (multiplication.h) shared out to threads.
#include <algorithm>

#include "multiplication.h"
#include "pool.h"

namespace woqfx {
namespace {

void multiply_chunk(const Multiplication& by, const ConstRows& x, const Rows& y, const LinearOptions& options,
                    std::size_t first, std::size_t rows) {
    const Layout& l = by.layout();
    thread_local Activations kept;
    Activations& activations = kept;  // this thread's, in all of them
    activations.plan(by, first, rows);
    const int threads = rows * l.k < 1 << 15 ? 1 : options.threads;
    parallel_for(rows, threads, [&](std::size_t i) { activations.prepare(first + i, x); });
    activations.finish();
    // A few parts for each thread, so that one that starts late does less; in pairs of tiles, which few rows take at
    // once.
    const auto threads_asked = static_cast<std::size_t>(options.threads < 1 ? max_threads() : options.threads);
    const bool few_tiles = l.tiles < 8 * threads_asked;
    const std::size_t share = divide_up(l.tiles, few_tiles ? threads_asked : 4 * threads_asked);
    const std::size_t wide = few_tiles ? share : (share + 1) / 2 * 2;
    parallel_for(divide_up(l.tiles, wide), options.threads, [&](std::size_t part) {
        activations.multiply(y, options.bias, part * wide, std::min(l.tiles, (part + 1) * wide));
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

void linear(const PackedWeight& w, const ConstRows& x, const Rows& y, const LinearOptions& options) {
    check(w, x, y, options);
    const Multiplication by(w, options.compute, options.outlier_threshold, options.isa);
    for (std::size_t first = 0; first < x.rows; first += by.most_rows())
        multiply_chunk(by, x, y, options, first, std::min(by.most_rows(), x.rows - first));
}

}  // namespace woqfx
