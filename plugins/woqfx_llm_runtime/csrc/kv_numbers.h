// How numbers of keys and values lie in a page: see HeadLayout.
#pragma once

#include <cstring>
#include <limits>

#include "accumulate.h"
#include "ops.h"

namespace {

using woqfx::runtime::HeadLayout;
using woqfx::runtime::kPage;
using woqfx::runtime::KVType;

// These saturate: an infinite key would make all of its scores NaN.
inline float between(float x, float most) { return x > most ? most : x < -most ? -most : x; }
inline F16 as_f16(float x) { return {to_f16(between(x, 65504.0f))}; }
inline BF16 as_bf16(float x) { return {to_bf16(between(x, 0x1.fep127f))}; }

inline float step_of(const float* x, std::size_t n) {
    float most = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const float size = x[i] < 0 ? -x[i] : x[i];
        most = size > most ? size : most;
    }
    return most > 0 ? most / 127.0f : 1.0f;
}

inline Byte code_of(float x, float step) {
    const float rounded = (x / step + 12582912.0f) - 12582912.0f;  // half to even
    return {static_cast<std::uint8_t>(static_cast<int>(rounded) + 128)};
}

// The numbers of a token go `stride` apart, `together` of them side by side; in int8 they are symmetric, with one step,
// which is kept. They are all made before any is stored: compilers make vectors of that.
template <class Element, class Make>
inline void store_numbers(std::uint8_t* to, std::size_t stride, std::size_t together, const float* x, std::size_t n,
                          Make make) {
    constexpr std::size_t kChunk = 64;
    auto* place = reinterpret_cast<Element*>(to);
    for (std::size_t done = 0; done < n; done += kChunk) {
        Element made[kChunk];
        const std::size_t count = n - done < kChunk ? n - done : kChunk;
        for (std::size_t i = 0; i < count; ++i) made[i] = make(x[done + i]);
        for (std::size_t i = 0; i < count; ++i) place[(done + i) / together * stride + (done + i) % together] = made[i];
    }
}

inline void store_numbers(const HeadLayout& l, std::uint8_t* to, std::size_t first, std::size_t stride,
                          std::size_t together, const float* x, float* step) {
    switch (l.type) {
        case KVType::f32:
            return store_numbers<float>(to + 4 * first, stride, together, x, l.head_dim, [](float v) { return v; });
        case KVType::f16: return store_numbers<F16>(to + 2 * first, stride, together, x, l.head_dim, as_f16);
        case KVType::bf16: return store_numbers<BF16>(to + 2 * first, stride, together, x, l.head_dim, as_bf16);
        case KVType::int8:
            const float by = *step = step_of(x, l.head_dim);
            return store_numbers<Byte>(to + first, stride, together, x, l.head_dim,
                                       [by](float v) { return code_of(v, by); });
    }
}

template <class V>
void store_key(const HeadLayout& l, std::uint8_t* head, std::size_t at, const float* key) {
    const std::size_t together = l.type == KVType::bf16 ? 2 : 1;
    store_numbers(l, head + l.keys_at, at * together, kPage * together, together, key,
                  reinterpret_cast<float*>(head) + at);
}

template <class V>
void store_value(const HeadLayout& l, std::uint8_t* head, std::size_t at, const float* value) {
    const std::size_t together = l.type == KVType::bf16 ? 2 : 1;
    store_numbers(l, head + l.values_at, at / together * together * l.width + at % together, together, 1, value,
                  reinterpret_cast<float*>(head) + kPage + at);
}

}  // namespace
