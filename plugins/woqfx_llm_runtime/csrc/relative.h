// Bias by distance: what is added to a score by how far a key stands from its query (Raffel et al. 2020, section 2.1).
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "api.h"
#include "ops.h"

namespace woqfx::runtime {

// Of each head. Distances (the key's position less the query's) beyond `reach` count as `reach`.
class RelativeBias {
public:
    // values [heads][2 * reach + 1], from distance -reach on.
    RelativeBias(std::size_t heads, std::size_t reach, const std::vector<float>& values)
        : heads_(heads), reach_(reach), width_(2 * (reach + kPage)) {
        constexpr std::size_t kMost = 1 << 16;
        if (heads < 1 || heads > kMost || reach > kMost || values.size() != heads * (2 * reach + 1))
            throw Error("a bias by distance has " + std::to_string(values.size()) + " numbers, where " +
                        std::to_string(heads) + " heads and a reach of " + std::to_string(reach) + " are given");
        // Each end is repeated, so that a page's keys find theirs side by side wherever the page is.
        padded_.resize(heads * width_);
        for (std::size_t head = 0; head < heads; ++head) {
            const float* from = values.data() + head * (2 * reach + 1);
            float* to = padded_.data() + head * width_;
            for (std::size_t i = 0; i < width_; ++i)
                to[i] = from[std::min(i < kPage ? 0 : i - kPage, 2 * reach)];
        }
    }

    std::size_t heads() const { return heads_; }
    std::size_t reach() const { return reach_; }
    // What Queries::bias takes.
    const float* of(std::size_t head) const { return padded_.data() + head * width_; }

private:
    std::size_t heads_, reach_, width_;
    std::vector<float> padded_;
};

}  // namespace woqfx::runtime
