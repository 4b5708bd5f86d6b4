#include "draw.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "mersenne.h"
#include "pool.h"
#include "shortlist.h"

namespace woqfx::runtime {
namespace {

constexpr double kRivals = 1 - 1e-6;  // nearer than this, rounding may decide
constexpr std::uint32_t kHighBits = 0x1fffff;  // a uniform number is 53 bits of two words

// Who has the largest weight / e so far. Whether a loser may take part at all is no matter.
class Race {
public:
    void enter(const Candidate& one, double weight, float e) {
        const double quotient = weight / static_cast<double>(e);
        if (quotient > best_) {
            second_ = best_, best_ = quotient, winner_ = one.certain ? std::int64_t{one.token} : kUndecided;
        } else {
            second_ = std::max(second_, quotient);
        }
    }
    // e = -log(1 - u) of the uniform u that two words make. Since e >= u, most need no logarithm to lose.
    void enter(const Candidate& one, double weight, std::uint32_t high, std::uint32_t low) {
        const double least = (high & kHighBits) * 0x1p-21;
        if (weight < best_ * kRivals * least) return;
        const std::uint64_t bits = (std::uint64_t{high & kHighBits} << 32) | low;
        enter(one, weight, static_cast<float>(-std::log1p(-(static_cast<double>(bits) * 0x1p-53))));
    }
    std::int64_t winner() const { return second_ < best_ * kRivals ? winner_ : kUndecided; }

private:
    double best_ = 0, second_ = 0;
    std::int64_t winner_ = kUndecided;
};

// Calls each(candidate, weight) for those that may be drawn, in order.
template <class F>
void each_weight(const Scores& scores, const Sampling& sampling, F&& each) {
    if (sampling.top_k == 0 && sampling.top_p >= 1 && sampling.min_p <= 0) {
        float weights[kStrip];
        for (std::size_t begin = 0; begin < scores.size(); begin += kStrip) {
            const std::size_t count = std::min(kStrip, scores.size() - begin);
            scores.weights(begin, count, weights);
            for (std::size_t i = 0; i < count; ++i) each({0, static_cast<std::uint32_t>(begin + i)}, static_cast<double>(weights[i]));
        }
        return;
    }
    for (const Candidate& one : shortlist(scores, sampling))
        each(one, std::exp(static_cast<double>(one.score - scores.largest())));
}

// The words that make uniform numbers of the tokens of one row, which are asked for in order.
class Words {
public:
    Words(Mersenne& source, std::size_t vocabulary) : source_(source), vocabulary_(vocabulary) {}

    // Two of them.
    const std::uint32_t* of(std::size_t token) {
        if (token >= end_) {
            const std::size_t begin = token / kSome * kSome;
            source_.skip(2 * (begin - end_));
            begin_ = begin, end_ = std::min(begin + kSome, vocabulary_);
            source_.fill(words_, 2 * (end_ - begin_));
        }
        return words_ + 2 * (token - begin_);
    }
    void pass_the_rest() { source_.skip(2 * (vocabulary_ - end_)); }

private:
    static constexpr std::size_t kSome = 64;
    Mersenne& source_;
    const std::size_t vocabulary_;
    std::uint32_t words_[2 * kSome];
    std::size_t begin_ = 0, end_ = 0;
};

// One row; `generator` stands at its first random number, and afterwards behind its last.
std::int64_t draw_row(const float* logits, const Sampling& sampling, std::size_t vocabulary, Mersenne* generator,
                      const float* noise) {
    const Scores scores(logits, vocabulary, sampling.temperature);
    if (!scores.usable()) return kUndecided;
    Race race;
    if (generator) {
        Words words(*generator, vocabulary);
        each_weight(scores, sampling, [&](const Candidate& one, double weight) {
            const std::uint32_t* const pair = words.of(one.token);
            race.enter(one, weight, pair[0], pair[1]);
        });
        words.pass_the_rest();
    } else {
        each_weight(scores, sampling, [&](const Candidate& one, double weight) {
            race.enter(one, weight, noise[one.token]);
        });
    }
    return race.winner();
}

}  // namespace

std::vector<std::vector<std::int64_t>> draw(const std::vector<Draws>& all, std::size_t vocabulary, int threads) {
    struct Row {
        std::size_t draws, row;
        std::optional<Mersenne> generator;
    };
    std::vector<std::vector<std::int64_t>> tokens;
    std::vector<Row> rows;
    for (std::size_t i = 0; i < all.size(); ++i) {
        tokens.emplace_back(all[i].rows.size());
        for (std::size_t row = 0; row < all[i].rows.size(); ++row) {
            rows.push_back({i, row, {}});
            if (!all[i].state) continue;
            rows.back().generator = row ? rows[rows.size() - 2].generator : Mersenne(all[i].state);
            if (row) rows.back().generator->skip(2 * vocabulary);
        }
    }
    parallel_for(rows.size(), threads, [&](std::size_t item) {
        Row& own = rows[item];
        const Draws& draws = all[own.draws];
        Mersenne* const generator = own.generator ? &*own.generator : nullptr;
        if (const float* const logits = draws.rows[own.row]) {
            const float* const noise = draws.noise ? draws.noise + own.row * vocabulary : nullptr;
            tokens[own.draws][own.row] = draw_row(logits, draws.sampling, vocabulary, generator, noise);
        } else if (generator) {
            generator->skip(2 * vocabulary);
        }
    });
    for (Row& last : rows) {
        std::vector<std::int64_t>& found = tokens[last.draws];
        if (last.row + 1 < found.size()) continue;
        if (std::find(found.begin(), found.end(), kUndecided) != found.end())
            std::fill(found.begin(), found.end(), kUndecided);
        else if (last.generator)
            last.generator->write(all[last.draws].state);
    }
    return tokens;
}

}  // namespace woqfx::runtime
