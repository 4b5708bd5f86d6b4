// Attention over pages of keys and values, over the vectors of an instruction set.
//
// Lanes are positions where keys are multiplied, and numbers of a head where values are; no sum crosses lanes but for
// the few of a softmax. A query goes through its pages in order and keeps the largest score so far, the sum of
// exponentials, and the sum of values (Milakov and Gimelshein 2018; Dao et al. 2022); pages begin at multiples of kPage
// from position 0 on, so that a query gives the same bits in a prompt, in any chunk of one, and alone.
#pragma once

#include <bit>
#include <cstring>
#include <limits>

#include "accumulate.h"
#include "lanes_math.h"
#include "ops.h"

namespace {

using woqfx::runtime::HeadLayout;
using woqfx::runtime::kPage;
using woqfx::runtime::KVType;
using woqfx::runtime::Queries;

inline void store_as(float x, float* to) { *to = x; }
// Saturates: an infinite key would make all of its scores NaN.
inline void store_as(float x, F16* to) { to->bits = to_f16(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x); }

inline float step_of(const float* x, std::size_t n) {
    float most = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const float size = x[i] < 0 ? -x[i] : x[i];
        most = size > most ? size : most;
    }
    return most > 0 ? most / 127.0f : 1.0f;
}

inline std::uint8_t code_of(float x, float step) {
    const float rounded = (x / step + 12582912.0f) - 12582912.0f;  // half to even
    return static_cast<std::uint8_t>(static_cast<int>(rounded) + 128);
}

// n numbers from element `first` on, at every `stride`th; in int8 they are symmetric, with one step, which is kept.
inline void store_numbers(KVType type, std::uint8_t* to, std::size_t first, std::size_t stride, const float* x,
                          std::size_t n, float* step) {
    switch (type) {
        case KVType::f32:
            for (std::size_t i = 0; i < n; ++i) store_as(x[i], reinterpret_cast<float*>(to) + first + i * stride);
            return;
        case KVType::f16:
            for (std::size_t i = 0; i < n; ++i) store_as(x[i], reinterpret_cast<F16*>(to) + first + i * stride);
            return;
        case KVType::int8:
            *step = step_of(x, n);
            for (std::size_t i = 0; i < n; ++i) to[first + i * stride] = code_of(x[i], *step);
    }
}

template <class V>
void store_key(const HeadLayout& l, std::uint8_t* head, std::size_t at, const float* key) {
    store_numbers(l.type, head + l.keys_at, at, kPage, key, l.head_dim, reinterpret_cast<float*>(head) + at);
}

template <class V>
void store_value(const HeadLayout& l, std::uint8_t* head, std::size_t at, const float* value) {
    store_numbers(l.type, head + l.values_at, at * l.width, 1, value, l.head_dim,
                  reinterpret_cast<float*>(head) + kPage + at);
}

// One query's scores of a page, made into exponentials; what it has gathered so far is scaled to the new maximum.
template <class V>
void soften(float* scores, std::size_t begin, std::size_t end, const float* key_steps, float softcap, const float* bias,
            float& most, float& total, float* out, std::size_t width) {
    using F = typename V::F;
    using M = Math<V>;
    constexpr std::size_t kVectors = kPage / V::kLanes;
    const float infinite = std::numeric_limits<float>::infinity();
    if (begin >= end) {  // this page is none of the query's
        std::memset(scores, 0, kPage * sizeof(float));
        return;
    }
    for (std::size_t i = 0; i < kVectors; ++i) {
        F s = V::load(scores + i * V::kLanes);
        if (key_steps) s = s * V::load(key_steps + i * V::kLanes);
        if (softcap > 0) s = M::tanh(s * V::set(1.0f / softcap)) * V::set(softcap);
        if (bias) s = s + V::load(bias + i * V::kLanes);
        V::store(scores + i * V::kLanes, s);
    }
    for (std::size_t i = 0; i < begin; ++i) scores[i] = -infinite;
    for (std::size_t i = end; i < kPage; ++i) scores[i] = -infinite;
    F largest = V::load(scores);
    for (std::size_t i = 1; i < kVectors; ++i) largest = M::larger(largest, V::load(scores + i * V::kLanes));
    const float found = M::largest(largest), now = found > most ? found : most;
    F sum = V::set(0.0f);
    for (std::size_t i = 0; i < kVectors; ++i) {
        const F e = M::exp(V::load(scores + i * V::kLanes) - V::set(now));
        V::store(scores + i * V::kLanes, e);
        sum = sum + e;
    }
    if (now > most) {
        float factor[V::kLanes];
        V::store(factor, M::exp(V::set(most - now)));
        total *= factor[0];
        for (std::size_t i = 0; i < width; i += V::kLanes) V::store(out + i, V::load(out + i) * V::set(factor[0]));
        most = now;
    }
    total += M::sum(sum);
}

// The biases of a page that begins at position `start`, for one query.
inline const float* bias_of_page(const Queries& a, std::size_t query, std::size_t start) {
    if (!a.bias[query]) return nullptr;
    const auto most = static_cast<std::ptrdiff_t>(a.reach), least = -most - static_cast<std::ptrdiff_t>(kPage);
    const auto distance = static_cast<std::ptrdiff_t>(start) - static_cast<std::ptrdiff_t>(a.position[query]);
    return a.bias[query] + ((distance < least ? least : distance > most ? most : distance) - least);
}

template <class V, class Element, int R>
void attend_rows(const HeadLayout& l, const Queries& a, std::size_t first, std::size_t count) {
    constexpr float kNone = -3.0e38f;  // before the first page; finite, so that no difference is NaN
    thread_local Scratch memory;
    float* queries = memory.get(R * (l.head_dim + kPage + l.width));  // [head_dim][R]
    float* scores = queries + R * l.head_dim;                         // [R][kPage]
    float* out = scores + R * kPage;                                  // [R][width]
    float most[R], total[R];
    std::size_t begin = SIZE_MAX, end = 0;
    for (std::size_t r = 0; r < R; ++r) {
        most[r] = kNone, total[r] = 0;
        for (std::size_t i = 0; i < l.head_dim; ++i)
            queries[i * R + r] = r < count ? a.q[first + r][i] * a.scale : 0.0f;
        if (r >= count) continue;
        begin = a.begin[first + r] < begin ? a.begin[first + r] : begin;
        end = a.end[first + r] > end ? a.end[first + r] : end;
    }
    std::memset(out, 0, R * l.width * sizeof(float));
    for (std::size_t page = begin / kPage; page * kPage < end; ++page) {
        const std::uint8_t* head = a.pages[page] + a.head_at;
        const auto* keys = reinterpret_cast<const Element*>(head + l.keys_at);
        const auto* values = reinterpret_cast<const Element*>(head + l.values_at);
        const auto* steps = l.type == KVType::int8 ? reinterpret_cast<const float*>(head) : nullptr;
        const std::size_t start = page * kPage, used = end - start < kPage ? end - start : kPage;
        std::memset(scores, 0, R * kPage * sizeof(float));
        accumulate_lanes<V, Element, R, R, 1>(queries, keys, kPage, l.head_dim, std::bit_ceil(used < 16 ? 16 : used),
                                              scores, kPage);
        for (std::size_t r = 0; r < R; ++r) {
            std::size_t from = 0, to = 0;
            const float* bias = nullptr;
            if (r < count) {
                bias = bias_of_page(a, first + r, start);
                const std::size_t b = a.begin[first + r], e = a.end[first + r];
                from = b > start ? b - start : 0;
                to = e <= start ? 0 : e - start < kPage ? e - start : kPage;
            }
            soften<V>(scores + r * kPage, from, to, steps, a.softcap, bias, most[r], total[r], out + r * l.width,
                      l.width);
            if (steps)
                for (std::size_t i = 0; i < kPage; ++i) scores[r * kPage + i] *= steps[kPage + i];
        }
        accumulate_lanes<V, Element, R, 1, int{kPage}>(scores, values, l.width, used, l.width, out, l.width);
    }
    for (std::size_t r = 0; r < count; ++r)
        for (std::size_t i = 0; i < l.head_dim; ++i) a.out[first + r][i] = out[r * l.width + i] / total[r];
}

template <class V, class Element>
void attend_as(const HeadLayout& l, const Queries& a) {
    constexpr std::size_t kWide = V::kLanes >= 16 ? 12 : 6;
    for (std::size_t first = 0; first < a.count;) {
        const std::size_t left = a.count - first, count = left < kWide ? left : kWide;
        const auto rows = left == 1   ? attend_rows<V, Element, 1>
                          : left == 2 ? attend_rows<V, Element, 2>
                          : left == 3 ? attend_rows<V, Element, 3>
                          : left <= 4 ? attend_rows<V, Element, 4>
                          : left <= 6 ? attend_rows<V, Element, 6>
                                      : attend_rows<V, Element, kWide>;
        rows(l, a, first, count);
        first += count;
    }
}

template <class V>
void attend(const HeadLayout& l, const Queries& a) {
    switch (l.type) {
        case KVType::f32: return attend_as<V, float>(l, a);
        case KVType::f16: return attend_as<V, F16>(l, a);
        case KVType::int8: return attend_as<V, Byte>(l, a);
    }
}

}  // namespace
