// Attention over pages of keys and values, over the vectors of an instruction set.
//
// Lanes are positions where keys are multiplied, and numbers of a head where values are; no sum crosses lanes but for
// the few of a softmax. A query takes the softmax of one span of positions after the other, and joins them by their largest
// scores (Milakov and Gimelshein 2018; Dao et al. 2022). Spans begin at multiples of kSpan from position 0 on, and are
// joined in order, so that a query gives the same bits in a prompt, in any chunk of one, alone, and span by span in
// several threads. Scores are in units of ln 2, so that exponentials are powers of 2.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include "accumulate.h"
#include "kv_numbers.h"
#include "lanes_math.h"
#include "ops.h"

namespace {

using woqfx::runtime::kPad;
using woqfx::runtime::kSpan;
using woqfx::runtime::kSpanPages;
using woqfx::runtime::Queries;

constexpr float kBits = 1.44269504f;  // of a score of 1: 1 / ln 2
constexpr float kNone = -3.0e38f;     // the largest score of no key; finite, so that no difference is NaN

// What a query has gathered of some keys, beside the sum of values: the largest score, and the sum of exponentials, which
// is 0 if the query sees none of them.
struct Softmax {
    float most = kNone, total = 0;
};

template <class V>
inline void store_weights(float* to, typename V::F weights) {
    V::store(to, weights);
}
template <class V>
inline void store_weights(std::uint16_t* to, typename V::F weights) {
    if constexpr (requires { V::store_bf16(to, weights); }) {
        V::store_bf16(to, weights);
    } else {
        float lanes[V::kLanes];
        std::uint16_t halves[V::kLanes];
        V::store(lanes, weights);
        for (std::size_t i = 0; i < V::kLanes; ++i) halves[i] = to_bf16(lanes[i]);
        std::memcpy(to, halves, sizeof halves);
    }
}

// One query's scores of a span made into weights, where they lie: powers of 2 for positions [begin, end), 0 for the others
// below `filled`. Weights are no larger than scores.
template <class V, class Weight>
Softmax soften(float* scores, std::size_t begin, std::size_t end, std::size_t filled) {
    using F = typename V::F;
    using M = Math<V>;
    constexpr std::size_t kLanes = V::kLanes;
    auto* weights = reinterpret_cast<Weight*>(scores);
    if (begin >= end) {
        std::memset(weights, 0, filled * sizeof(Weight));
        return {};
    }
    static constexpr auto kLane = [] {
        std::array<float, kLanes> lanes{};
        for (std::size_t i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(i);
        return lanes;
    }();
    const F lane = V::load(kLane.data()), never = V::set(-std::numeric_limits<float>::infinity());
    const std::size_t first = begin / kLanes * kLanes, last = (end - 1) / kLanes * kLanes;
    F s = V::load(scores + first);
    V::store(scores + first, lane < V::set(static_cast<float>(begin - first)) ? never : s);
    s = V::load(scores + last);
    V::store(scores + last, lane < V::set(static_cast<float>(end - last)) ? s : never);
    F largest = V::load(scores + first);
    for (std::size_t i = first + kLanes; i <= last; i += kLanes) largest = M::larger(largest, V::load(scores + i));
    Softmax found;
    found.most = std::max(M::largest(largest), kNone);
    F sum = V::set(0.0f);
    for (std::size_t i = first; i <= last; i += kLanes) {
        const F weight = M::exp2(V::load(scores + i) - V::set(found.most));
        store_weights<V>(weights + i, weight);
        sum = sum + weight;
    }
    found.total = M::sum(sum);
    std::memset(weights, 0, first * sizeof(Weight));
    std::memset(weights + last + kLanes, 0, (std::max(filled, last + kLanes) - last - kLanes) * sizeof(Weight));
    return found;
}

// What `more` has gathered, to the rest.
template <class V>
void join(Softmax& all, float* sums, const Softmax& more, const float* more_sums, std::size_t width) {
    if (more.total == 0) return;
    if (all.total == 0) {
        all = more;
        std::memcpy(sums, more_sums, width * sizeof(float));
        return;
    }
    const float most = std::max(all.most, more.most);
    const float keep = Math<V>::exp2(all.most - most), take = Math<V>::exp2(more.most - most);
    all = {most, all.total * keep + more.total * take};
    for (std::size_t i = 0; i < width; i += V::kLanes)
        V::store(sums + i, V::fma(V::load(more_sums + i), V::set(take), V::load(sums + i) * V::set(keep)));
}

// The biases of a page that begins at position `start`, for one query.
inline const float* bias_of_page(const Queries& a, std::size_t query, std::size_t start) {
    if (!a.bias[query]) return nullptr;
    const auto most = static_cast<std::ptrdiff_t>(a.reach), least = -most - static_cast<std::ptrdiff_t>(kPage);
    const auto distance = static_cast<std::ptrdiff_t>(start) - static_cast<std::ptrdiff_t>(a.position[query]);
    return a.bias[query] + ((distance < least ? least : distance > most ? most : distance) - least);
}

template <class V>
inline void multiply_lanes(float* x, const float* by) {
    for (std::size_t i = 0; i < kPage; i += V::kLanes) V::store(x + i, V::load(x + i) * V::load(by + i));
}

// A page's products become scores: by the keys' steps, capped, and with biases; any of these may be missing.
template <class V>
void make_scores(float* x, const float* key_steps, float softcap, const float* bias) {
    if (key_steps) multiply_lanes<V>(x, key_steps);
    if (softcap > 0)
        for (std::size_t i = 0; i < kPage; i += V::kLanes)
            V::store(x + i, Math<V>::tanh(V::load(x + i) * V::set(1.0f / softcap)) * V::set(softcap * kBits));
    if (bias)
        for (std::size_t i = 0; i < kPage; i += V::kLanes)
            V::store(x + i, V::fma(V::load(bias + i), V::set(kBits), V::load(x + i)));
}

// R queries or fewer, from `first` on, and one head.
template <class V, class Element, int R>
class Rows {
public:
    Rows(const HeadLayout& l, const Queries& a, std::size_t first) : l_(l), a_(a), first_(first) {
        count_ = std::min<std::size_t>(R, a.count - first);
        for (std::size_t r = 0; r < count_; ++r) {
            begin_ = std::min(begin_, a.begin[first + r]);
            end_ = std::max(end_, a.end[first + r]);
        }
        const std::size_t steps = (l.head_dim + kNumbers - 1) / kNumbers;
        thread_local Scratch memory;
        scores_ = memory.get(R * (kSpan + 2 * l.width + steps));
        gathered_ = scores_ + R * kSpan, sums_ = gathered_ + R * l.width;
        words_ = reinterpret_cast<Word*>(sums_ + R * l.width);
        const float scale = a.softcap > 0 ? a.scale : a.scale * kBits;
        for (std::size_t r = 0; r < R; ++r)
            for (std::size_t i = 0; i < steps; ++i)
                words_[i * R + r] = r < count_ ? word(a.q[first + r], i, scale) : Word{};
    }

    void all() {
        Softmax softmax[R];
        for (std::size_t span = begin_ / kSpan; span * kSpan < end_; ++span) {
            Softmax found[R];
            gather(span, found);
            for (std::size_t r = 0; r < count_; ++r)
                join<V>(softmax[r], sums_ + r * l_.width, found[r], gathered_ + r * l_.width, l_.width);
        }
        for (std::size_t r = 0; r < count_; ++r)
            for (std::size_t i = 0; i < l_.head_dim; ++i)
                a_.out[first_ + r][i] = sums_[r * l_.width + i] / softmax[r].total;
    }

    void part(std::size_t span, float* const* parts) {
        Softmax found[R];
        gather(span, found);
        for (std::size_t r = 0; r < count_; ++r) {
            float* to = parts[first_ + r];
            to[0] = found[r].most, to[1] = found[r].total;
            std::memcpy(to + kPad, gathered_ + r * l_.width, l_.width * sizeof(float));
        }
    }

private:
    using Word = typename Factor<Element>::Word;
    using Weight = std::conditional_t<std::is_same_v<Element, BF16Pair>, std::uint16_t, float>;
    static constexpr std::size_t kNumbers = Factor<Element>::kNumbers;

    Word word(const float* q, std::size_t i, float scale) const {
        if constexpr (kNumbers == 1) {
            return q[i] * scale;
        } else {
            const float second = 2 * i + 1 < l_.head_dim ? q[2 * i + 1] * scale : 0.0f;
            return to_bf16(q[2 * i] * scale) | static_cast<std::uint32_t>(to_bf16(second)) << 16;
        }
    }

    // To `found` and `gathered_`. Weights lie in the first part of a query's scores.
    void gather(std::size_t span, Softmax* found) {
        const std::size_t start = span * kSpan, used = std::min(end_ - std::min(end_, start), kSpan);
        const Element* values[kSpanPages];
        const float* steps[kSpanPages] = {};
        const std::size_t pages = (used + kPage - 1) / kPage;
        const std::size_t first_page = std::min(begin_ > start ? (begin_ - start) / kPage : 0, pages);
        for (std::size_t page = first_page; page < pages; ++page) {
            const std::uint8_t* head = a_.pages[span * kSpanPages + page] + a_.head_at;
            const auto* keys = reinterpret_cast<const Element*>(head + l_.keys_at);
            values[page] = reinterpret_cast<const Element*>(head + l_.values_at);
            if constexpr (std::is_same_v<Element, Byte>) steps[page] = reinterpret_cast<const float*>(head);
            const std::size_t here = page * kPage, filled = std::clamp<std::size_t>(used - here, 16, kPage);
            accumulate_lanes<V, Element, R, R, 1>(words_, Pieces<Element>{&keys, l_.head_dim, kPage},
                                                  (l_.head_dim + kNumbers - 1) / kNumbers,
                                                  std::bit_ceil(filled), scores_ + here, kSpan);
            if (steps[page] || a_.softcap > 0 || a_.bias[first_])
                for (std::size_t r = 0; r < count_; ++r)
                    make_scores<V>(scores_ + r * kSpan + here, steps[page], a_.softcap,
                                   bias_of_page(a_, first_ + r, start + here));
        }
        for (std::size_t r = 0; r < R; ++r) {
            float* scores = scores_ + r * kSpan;
            const auto within = [&](std::size_t at) { return std::min(at - std::min(at, start), kSpan); };
            found[r] = r < count_ ? soften<V, Weight>(scores, within(a_.begin[first_ + r]), within(a_.end[first_ + r]),
                                                      pages * kPage)
                                  : soften<V, Weight>(scores, 0, 0, pages * kPage);
            for (std::size_t page = first_page; page < pages; ++page)
                if (steps[page]) multiply_lanes<V>(scores + page * kPage, steps[page] + kPage);
        }
        const std::size_t skipped = first_page * kPage;
        accumulate_lanes<V, Element, R, 1, int{kSpan}>(
            reinterpret_cast<const Word*>(scores_) + skipped / kNumbers,
            Pieces<Element>{values + first_page, kPage / kNumbers, l_.width},
            used > skipped ? (used - skipped + kNumbers - 1) / kNumbers : 0, l_.width, gathered_, l_.width);
    }

    const HeadLayout& l_;
    const Queries& a_;
    std::size_t first_, count_, begin_ = SIZE_MAX, end_ = 0;
    float *scores_, *gathered_, *sums_;  // [R][kSpan], [R][width] of a span, [R][width] of all
    Word* words_;                        // [head_dim / kNumbers][R]
};

// use(rows) for all queries, a few at a time.
template <class V, class Element, class Use>
void in_rows(const HeadLayout& l, const Queries& a, Use use) {
    const auto take = [&]<int R>(std::size_t first, std::integral_constant<int, R>) {
        Rows<V, Element, R> rows(l, a, first);
        use(rows);
    };
    constexpr std::size_t kWide = V::kLanes >= 16 ? 12 : 6;
    for (std::size_t first = 0; first < a.count; first += kWide) {
        const std::size_t left = a.count - first;
        if (left == 1)
            take(first, std::integral_constant<int, 1>{});
        else if (left == 2)
            take(first, std::integral_constant<int, 2>{});
        else if (left == 3)
            take(first, std::integral_constant<int, 3>{});
        else if (left == 4)
            take(first, std::integral_constant<int, 4>{});
        else if (left <= 6 || kWide == 6)
            take(first, std::integral_constant<int, 6>{});
        else if (left <= 8)
            take(first, std::integral_constant<int, 8>{});
        else
            take(first, std::integral_constant<int, kWide>{});
    }
}

template <class V, class Use>
void with_elements(const HeadLayout& l, const Queries& a, Use use) {
    switch (l.type) {
        case KVType::f32: return in_rows<V, float>(l, a, use);
        case KVType::f16: return in_rows<V, F16>(l, a, use);
        case KVType::bf16: return in_rows<V, BF16Pair>(l, a, use);
        case KVType::int8: return in_rows<V, Byte>(l, a, use);
    }
}

template <class V>
void attend(const HeadLayout& l, const Queries& a) {
    with_elements<V>(l, a, [](auto& rows) { rows.all(); });
}

template <class V>
void attend_span(const HeadLayout& l, const Queries& a, std::size_t span, float* const* parts) {
    with_elements<V>(l, a, [=](auto& rows) { rows.part(span, parts); });
}

template <class V>
void join_spans(const HeadLayout& l, const float* parts, std::size_t count, float* out) {
    thread_local Scratch memory;
    float* sums = memory.get(l.width);
    Softmax all;
    for (std::size_t i = 0; i < count; ++i, parts += kPad + l.width) {
        join<V>(all, sums, {parts[0], parts[1]}, parts + kPad, l.width);
    }
    for (std::size_t i = 0; i < l.head_dim; ++i) out[i] = sums[i] / all.total;
}

}  // namespace
