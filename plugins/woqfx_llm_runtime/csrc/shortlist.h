// The tokens of a row of logits that may be drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "draw.h"

namespace woqfx::runtime {

struct Candidate {
    float score;  // logit / temperature
    std::uint32_t token;
    bool certain = true;  // that the filters leave it
};

constexpr std::size_t kStrip = 1024;

// A row of logits, and the largest of each group of them.
class Scores {
public:
    Scores(const float* logits, std::size_t n, float temperature);

    // Whether there is a largest, and no NaN.
    bool usable() const { return usable_; }
    std::size_t size() const { return n_; }
    float largest() const { return largest_ / temperature_; }
    // exp(score - largest) of `count` tokens from `begin` on.
    void weights(std::size_t begin, std::size_t count, float* out) const;
    // The sum of all weights.
    double total() const;
    // A score such that those that have no less weigh `mass` together.
    float reach(double mass) const;
    // At least the `count` largest, and all that are equal to one of them; the largest first.
    std::vector<Candidate> best(std::size_t count) const;
    // At least those with a score of `least`, in any order.
    std::vector<Candidate> from(float least) const;

private:
    std::vector<Candidate> above(float bound) const;

    const float* logits_;
    std::size_t n_, whole_;  // whole_: in strips
    float temperature_, largest_;
    bool usable_;
    std::vector<float> maxima_;
};

// What the filters leave, or may leave, in the order of tokens. `sampling` has a filter.
std::vector<Candidate> shortlist(const Scores&, const Sampling& sampling);

}  // namespace woqfx::runtime
