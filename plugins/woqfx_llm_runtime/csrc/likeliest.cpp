// The likeliest token of each row of logits.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine.h"
#include "pool.h"

namespace woqfx::runtime {
namespace {

constexpr std::size_t kBlock = 1024, kLanes = 32;

// The largest number of a block; NaN if there is one in it.
float largest(const float* x) {
    float most[kLanes];
    std::uint32_t odd[kLanes] = {};
    for (float& one : most) one = -std::numeric_limits<float>::infinity();
    for (std::size_t i = 0; i < kBlock; i += kLanes)
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
            most[lane] = x[i + lane] > most[lane] ? x[i + lane] : most[lane];
            odd[lane] |= x[i + lane] != x[i + lane];
        }
    float found = most[0];
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        if (odd[lane]) return std::numeric_limits<float>::quiet_NaN();
        found = most[lane] > found ? most[lane] : found;
    }
    return found;
}

// Where the first of the largest numbers is, or the first NaN.
std::int64_t place_of_largest(const float* x, std::size_t n) {
    const auto precedes = [&](float a, float b) { return a != a ? b == b : a > b; };
    std::size_t begin = 0, end = std::min(n, kBlock);  // of the block that has it
    float most = -std::numeric_limits<float>::infinity();
    std::size_t i = 0;
    for (; i + kBlock <= n; i += kBlock)
        if (const float found = largest(x + i); precedes(found, most)) most = found, begin = i, end = i + kBlock;
    for (; i < n; ++i)
        if (precedes(x[i], most)) most = x[i], begin = i, end = i + 1;
    for (std::size_t j = begin; j < end; ++j)
        if (x[j] == most || x[j] != x[j]) return static_cast<std::int64_t>(j);
    return 0;  // of no numbers at all
}

}  // namespace

std::vector<std::int64_t> Engine::likeliest(const float* logits, std::size_t rows) const {
    std::vector<std::int64_t> found(rows);
    parallel_for(rows, threads_, [&](std::size_t row) {
        found[row] = place_of_largest(logits + row * model_.vocabulary, model_.vocabulary);
    });
    return found;
}

}  // namespace woqfx::runtime
