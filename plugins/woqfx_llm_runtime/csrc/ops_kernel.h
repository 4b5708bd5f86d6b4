// Norms, activations, rotations and plain products, over the vectors of an instruction set.
#pragma once

#include <cmath>
#include <cstring>

#include "accumulate.h"
#include "attend.h"
#include "lanes_math.h"
#include "ops.h"

namespace {

using woqfx::runtime::Activation;

// f(i, vectors at i...) for all of a row; the last vector may be short, and is then filled up with zeros.
template <class V>
typename V::F load_some(const float* from, std::size_t count) {
    float lanes[V::kLanes] = {};
    std::memcpy(lanes, from, count * 4);
    return V::load(lanes);
}

template <class V>
void store_some(float* to, typename V::F x, std::size_t count) {
    float lanes[V::kLanes];
    V::store(lanes, x);
    std::memcpy(to, lanes, count * 4);
}

template <class V, class Function>
inline void map(const float* x, std::size_t n, float* y, Function f) {
    std::size_t i = 0;
    for (; i + V::kLanes <= n; i += V::kLanes) V::store(y + i, f(V::load(x + i)));
    if (i < n) store_some<V>(y + i, f(load_some<V>(x + i, n - i)), n - i);
}

template <class V, class Function>
inline void map(const float* x, const float* other, std::size_t n, float* y, Function f) {
    std::size_t i = 0;
    for (; i + V::kLanes <= n; i += V::kLanes) V::store(y + i, f(V::load(x + i), V::load(other + i)));
    if (i < n) store_some<V>(y + i, f(load_some<V>(x + i, n - i), load_some<V>(other + i, n - i)), n - i);
}

// The sum of f(x) over a row: four running sums, then those in pairs.
template <class V, class Function>
inline float sum_of(const float* x, std::size_t n, Function f) {
    using F = typename V::F;
    constexpr std::size_t kLanes = V::kLanes;
    F sums[4] = {V::set(0.0f), V::set(0.0f), V::set(0.0f), V::set(0.0f)};
    std::size_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
        for (std::size_t j = 0; j < 4; ++j) sums[j] = sums[j] + f(V::load(x + i + j * kLanes));
    for (; i + kLanes <= n; i += kLanes) sums[0] = sums[0] + f(V::load(x + i));
    float total = Math<V>::sum((sums[0] + sums[2]) + (sums[1] + sums[3]));
    if (i < n) {
        float lanes[kLanes];
        V::store(lanes, f(load_some<V>(x + i, n - i)));
        for (std::size_t j = 0; j < n - i; ++j) total += lanes[j];
    }
    return total;
}

template <class V>
void scale_by_weight(const float* x, std::size_t n, float factor, const float* weight, float* y) {
    const typename V::F by = V::set(factor);
    if (weight)
        map<V>(x, weight, n, y, [by](auto v, auto w) { return v * by * w; });
    else
        map<V>(x, n, y, [by](auto v) { return v * by; });
}

template <class V>
void rms_norm(const float* x, std::size_t n, float eps, const float* weight, float* y) {
    const float squares = sum_of<V>(x, n, [](auto v) { return v * v; });
    scale_by_weight<V>(x, n, 1.0f / std::sqrt(squares / static_cast<float>(n) + eps), weight, y);
}

template <class V>
void layer_norm(const float* x, std::size_t n, float eps, const float* weight, const float* bias, float* y) {
    const float mean = sum_of<V>(x, n, [](auto v) { return v; }) / static_cast<float>(n);
    const typename V::F middle = V::set(mean);
    map<V>(x, n, y, [middle](auto v) { return v - middle; });
    const float squares = sum_of<V>(y, n, [](auto v) { return v * v; });
    scale_by_weight<V>(y, n, 1.0f / std::sqrt(squares / static_cast<float>(n) + eps), weight, y);
    if (bias) map<V>(y, bias, n, y, [](auto v, auto b) { return v + b; });
}

template <class V, Activation kind>
inline typename V::F activation(typename V::F x) {
    using M = Math<V>;
    if constexpr (kind == Activation::silu) return x * M::sigmoid(x);
    if constexpr (kind == Activation::quick_gelu) return x * M::sigmoid(x * V::set(1.702f));
    if constexpr (kind == Activation::gelu)
        return x * V::set(0.5f) * (V::set(1.0f) + M::erf(x * V::set(0.70710678f)));
    if constexpr (kind == Activation::gelu_tanh) {  // (1 + tanh(u)) / 2 is sigmoid(2 u); 2 sqrt(2 / pi) = 1.5957691
        const auto u = V::fma(V::set(0.044715f) * x * x, x, x);
        return x * M::sigmoid(u * V::set(1.5957691f));
    }
    if constexpr (kind == Activation::relu) return M::larger(x, V::set(0.0f));
    if constexpr (kind == Activation::relu2) {
        const auto positive = M::larger(x, V::set(0.0f));
        return positive * positive;
    }
}

template <class V, Activation kind>
void activate_as(const float* x, const float* other, std::size_t n, float* y) {
    if (other)
        map<V>(x, other, n, y, [](auto v, auto o) { return activation<V, kind>(v) * o; });
    else
        map<V>(x, n, y, [](auto v) { return activation<V, kind>(v); });
}

template <class V>
void activate(Activation kind, const float* x, const float* other, std::size_t n, float* y) {
    switch (kind) {
        case Activation::silu: return activate_as<V, Activation::silu>(x, other, n, y);
        case Activation::gelu: return activate_as<V, Activation::gelu>(x, other, n, y);
        case Activation::gelu_tanh: return activate_as<V, Activation::gelu_tanh>(x, other, n, y);
        case Activation::quick_gelu: return activate_as<V, Activation::quick_gelu>(x, other, n, y);
        case Activation::relu: return activate_as<V, Activation::relu>(x, other, n, y);
        case Activation::relu2: return activate_as<V, Activation::relu2>(x, other, n, y);
    }
}

template <class V>
void add(float* to, const float* x, float factor, std::size_t n) {
    const typename V::F by = V::set(factor);
    map<V>(to, x, n, to, [by](auto t, auto v) { return V::fma(v, by, t); });
}

template <class V>
void scale_logits(float* x, std::size_t n, float factor, float cap) {
    const typename V::F by = V::set(cap > 0 ? factor / cap : factor), reach = V::set(cap);
    if (cap > 0)
        map<V>(x, n, x, [=](auto v) { return Math<V>::tanh(v * by) * reach; });
    else
        map<V>(x, n, x, [=](auto v) { return v * by; });
}

template <class V>
void rotate(float* x, const float* cosines, const float* sines, std::size_t n, bool interleaved) {
    std::size_t i = 0;
    if (!interleaved)
        for (; i + V::kLanes <= n; i += V::kLanes) {
            const auto a = V::load(x + i), b = V::load(x + n + i);
            const auto c = V::load(cosines + i), s = V::load(sines + i);
            V::store(x + i, a * c - b * s);
            V::store(x + n + i, b * c + a * s);
        }
    for (; i < n; ++i) {
        float& a = x[interleaved ? 2 * i : i];
        float& b = x[interleaved ? 2 * i + 1 : n + i];
        const float turned = a * cosines[i] - b * sines[i];
        b = b * cosines[i] + a * sines[i];
        a = turned;
    }
}

template <class V>
void softmax(float* x, std::size_t n) {
    float most = x[0];
    for (std::size_t i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
    const typename V::F middle = V::set(most);
    map<V>(x, n, x, [middle](auto v) { return Math<V>::exp(v - middle); });
    const float total = sum_of<V>(x, n, [](auto v) { return v; });
    const typename V::F by = V::set(1.0f / total);
    map<V>(x, n, x, [by](auto v) { return v * by; });
}

template <class V>
void weigh(const float* x, std::size_t n, float divisor, float most, float* y) {
    const typename V::F by = V::set(divisor), middle = V::set(most);
    map<V>(x, n, y, [by, middle](auto v) { return Math<V>::exp(v / by - middle); });
}

// R rows of activations side by side, then tile by tile.
template <class V, class Element, int R>
void dense_rows(const woqfx::runtime::DenseTiles& w, const float* x, std::size_t x_stride, std::size_t rows,
                const float* bias, float* y, std::size_t y_stride, std::size_t begin, std::size_t end,
                float* side_by_side) {
    const float* words = x;
    if constexpr (R > 1) {
        for (std::size_t r = 0; r < R; ++r)
            for (std::size_t k = 0; k < w.k; ++k) side_by_side[k * R + r] = r < rows ? x[r * x_stride + k] : 0.0f;
        words = side_by_side;
    }
    for (std::size_t tile = begin; tile < end; ++tile) {
        alignas(64) float sums[R * 32];
        const auto* from = static_cast<const Element*>(w.data) + tile * w.k * 32;
        accumulate_lanes<V, Element, R, R, 1>(words, Pieces<Element>{&from, w.k, 32}, w.k, 32, sums, 32);
        const std::size_t column = tile * 32, width = w.n - column < 32 ? w.n - column : 32;
        for (std::size_t r = 0; r < rows; ++r)
            for (std::size_t j = 0; j < width; ++j)
                y[r * y_stride + column + j] = sums[r * 32 + j] + (bias ? bias[column + j] : 0.0f);
    }
}

template <class V, class Element>
void dense_as(const woqfx::runtime::DenseTiles& w, const float* x, std::size_t x_stride, std::size_t rows,
              const float* bias, float* y, std::size_t y_stride, std::size_t begin, std::size_t end) {
    constexpr std::size_t kMost = 6;
    thread_local Scratch memory;
    float* scratch = memory.get(kMost * w.k);
    for (std::size_t row = 0; row < rows;) {
        const std::size_t left = rows - row, count = left < kMost ? left : kMost;
        const auto multiply = left == 1   ? dense_rows<V, Element, 1>
                              : left <= 2 ? dense_rows<V, Element, 2>
                                          : dense_rows<V, Element, kMost>;
        multiply(w, x + row * x_stride, x_stride, count, bias, y + row * y_stride, y_stride, begin, end, scratch);
        row += count;
    }
}

template <class V>
void dense(const woqfx::runtime::DenseTiles& w, const float* x, std::size_t x_stride, std::size_t rows,
           const float* bias, float* y, std::size_t y_stride, std::size_t begin, std::size_t end) {
    switch (w.type) {
        case woqfx::Float::f32: return dense_as<V, float>(w, x, x_stride, rows, bias, y, y_stride, begin, end);
        case woqfx::Float::f16: return dense_as<V, F16>(w, x, x_stride, rows, bias, y, y_stride, begin, end);
        case woqfx::Float::bf16: return dense_as<V, BF16>(w, x, x_stride, rows, bias, y, y_stride, begin, end);
    }
}

template <class V>
constexpr woqfx::runtime::Ops ops_of() {
    return {rms_norm<V>, layer_norm<V>, activate<V>,    add<V>,    scale_logits<V>, rotate<V>,     softmax<V>,
            weigh<V>,    store_key<V>,  store_value<V>, attend<V>, attend_span<V>,  join_spans<V>, dense<V>};
}

}  // namespace
