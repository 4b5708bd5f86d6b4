#include "shortlist.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "ops.h"

namespace woqfx::runtime {
namespace {

constexpr std::size_t kGroups = 32;     // of a strip: every 32nd number belongs to one
constexpr std::size_t kUsual = 256;     // so many usually have the probability that top-p asks for
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// What sums of probabilities may differ by, in float32 and in another order; and quotients of two. Beyond what was seen,
// 4e-7 and 1.3e-7.
constexpr double kDoubtfulMass = 5e-6, kDoubtfulRatio = 1e-6;

// Less than x by more than what division by a temperature may round to the same number.
float somewhat_below(float x) { return x - std::fabs(x) * 1e-6f - std::numeric_limits<float>::min(); }

std::vector<Candidate> sorted(std::vector<Candidate> some) {
    std::sort(some.begin(), some.end(), [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
    return some;
}

// Keeps the first that together have the probability `top_p` of `total`; false if these are fewer. Which of equals
// are kept is a matter of the sorting.
bool keep_mass(std::vector<Candidate>& best, float largest, double total, double top_p) {
    double likelier = 0;
    for (std::size_t i = 0; i < best.size();) {
        if (likelier >= top_p + kDoubtfulMass) {
            best.resize(i);
            return true;
        }
        const double share = std::exp(static_cast<double>(best[i].score - largest)) / total;
        std::size_t end = i + 1;
        while (end < best.size() && best[end].score == best[i].score) ++end;
        const bool certain = likelier + static_cast<double>(end - 1 - i) * share < top_p - kDoubtfulMass;
        for (; i < end; ++i, likelier += share) best[i].certain = certain;
    }
    return false;
}

// Keeps those that have `min_p` of the largest's probability.
void keep_relative(std::vector<Candidate>& some, float largest, double min_p) {
    const auto unlikely = [&](Candidate& one) {
        const double share = std::exp(static_cast<double>(one.score - largest));
        one.certain &= share >= min_p * (1 + kDoubtfulRatio);
        return share < min_p * (1 - kDoubtfulRatio);
    };
    some.erase(std::remove_if(some.begin(), some.end(), unlikely), some.end());
}

}  // namespace

Scores::Scores(const float* logits, std::size_t n, float temperature)
    : logits_(logits), n_(n), whole_(n / kStrip * kStrip), temperature_(temperature) {
    maxima_.resize(n / kStrip * kGroups);
    std::uint32_t odd[kGroups] = {};
    float* most = maxima_.data();
    for (std::size_t begin = 0; begin < whole_; begin += kStrip, most += kGroups) {
        float own[kGroups];
        for (float& one : own) one = -kInfinity;
        for (std::size_t i = begin; i < begin + kStrip; i += kGroups)
            for (std::size_t group = 0; group < kGroups; ++group) {
                const float x = logits[i + group];
                own[group] = x > own[group] ? x : own[group];
                odd[group] |= x != x;
            }
        std::copy(own, own + kGroups, most);
    }
    bool any_odd = std::any_of(odd, odd + kGroups, [](std::uint32_t one) { return one != 0; });
    for (std::size_t i = whole_; i < n; ++i) {
        maxima_.push_back(logits[i]);
        any_odd |= logits[i] != logits[i];
    }
    largest_ = maxima_.empty() || any_odd ? -kInfinity : *std::max_element(maxima_.begin(), maxima_.end());
    usable_ = std::isfinite(largest_) && std::isfinite(largest_ / temperature);
}

void Scores::weights(std::size_t begin, std::size_t count, float* out) const {
    ops().weigh(logits_ + begin, count, temperature_, largest(), out);
}

double Scores::total() const {
    double sum = 0;
    float weight[kStrip];
    for (std::size_t begin = 0; begin < n_; begin += kStrip) {
        const std::size_t count = std::min(kStrip, n_ - begin);
        weights(begin, count, weight);
        std::fill(weight + count, weight + kStrip, 0.0f);
        double parts[8] = {};
        for (std::size_t i = 0; i < kStrip; i += 8)
            for (std::size_t lane = 0; lane < 8; ++lane) parts[lane] += static_cast<double>(weight[i + lane]);
        for (const double part : parts) sum += part;
    }
    return sum;
}

float Scores::reach(double mass) const {
    constexpr float kBins = 256, kBinsPerUnit = 8;
    double bins[static_cast<std::size_t>(kBins)] = {};
    float weight[kStrip];
    for (std::size_t begin = 0; begin < n_; begin += kStrip) {
        const std::size_t count = std::min(kStrip, n_ - begin);
        weights(begin, count, weight);
        for (std::size_t i = 0; i < count; ++i) {
            const float below = (largest() - logits_[begin + i] / temperature_) * kBinsPerUnit;
            bins[static_cast<std::size_t>(std::min(below, kBins - 1))] += static_cast<double>(weight[i]);
        }
    }
    float below = 0;
    for (const double bin : bins) {
        below += 1 / kBinsPerUnit;
        if ((mass -= bin) <= 0 && below < kBins / kBinsPerUnit) return largest() - below;
    }
    return -kInfinity;
}

std::vector<Candidate> Scores::best(std::size_t count) const {
    float bound = -kInfinity;
    if (count < maxima_.size()) {
        std::vector<float> some = maxima_;  // each is one of the row: so many of the row are no less
        const auto last = some.begin() + static_cast<std::ptrdiff_t>(count) - 1;
        std::nth_element(some.begin(), last, some.end(), std::greater<float>());
        bound = somewhat_below(*last);
    }
    return sorted(above(bound));
}

std::vector<Candidate> Scores::from(float least) const {
    return above(somewhat_below(least) * temperature_);
}

std::vector<Candidate> Scores::above(float bound) const {
    std::vector<Candidate> found;
    const auto take = [&](std::size_t i) {
        if (logits_[i] >= bound) found.push_back({logits_[i] / temperature_, static_cast<std::uint32_t>(i)});
    };
    for (std::size_t at = 0; at < whole_ / kStrip * kGroups; ++at)
        if (maxima_[at] >= bound)
            for (std::size_t i = 0; i < kStrip; i += kGroups) take(at / kGroups * kStrip + at % kGroups + i);
    for (std::size_t i = whole_; i < n_; ++i) take(i);
    return found;
}

std::vector<Candidate> shortlist(const Scores& scores, const Sampling& sampling) {
    const float largest = scores.largest();
    const bool cut = sampling.top_k > 0 && sampling.top_k < scores.size();
    std::vector<Candidate> best;
    if (cut) {
        best = scores.best(sampling.top_k);
        const float least = best[sampling.top_k - 1].score;
        best.resize(static_cast<std::size_t>(
            std::find_if(best.begin(), best.end(), [&](const Candidate& one) { return one.score < least; }) -
            best.begin()));
    }
    if (sampling.top_p < 1) {
        const auto top_p = static_cast<double>(sampling.top_p);
        double total = 0;
        for (const Candidate& one : best) total += std::exp(static_cast<double>(one.score - largest));
        if (!cut) total = scores.total();
        if (!cut) best = scores.best(kUsual);
        if (!keep_mass(best, largest, total, top_p) && !cut) {
            best = sorted(scores.from(scores.reach(total * (top_p + 2 * kDoubtfulMass))));
            keep_mass(best, largest, total, top_p);
        }
    } else if (!cut) {
        best = scores.from(largest + std::log(sampling.min_p) - 1e-3f);
    }
    if (sampling.min_p > 0) keep_relative(best, largest, static_cast<double>(sampling.min_p));
    std::sort(best.begin(), best.end(), [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
    return best;
}

}  // namespace woqfx::runtime
