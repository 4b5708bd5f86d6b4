// The inner loop of attention and of plain products: sums[r][lane] += a[r][k] * b[k][lane] for k in order.
//
// A sum is one chain of multiply-adds in the order of k, whatever the number of rows or the vectors at a time.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "numbers.h"
#include "unroll.h"

namespace {

struct F16 {
    std::uint16_t bits;
};
struct BF16 {
    std::uint16_t bits;
};
struct Byte {
    std::uint8_t code;  // a number from -127 to 127, plus 128
};

template <class V>
typename V::F load_lanes(const float* from) {
    return V::load(from);
}
template <class V>
typename V::F load_lanes(const F16* from) {
    return V::load_scales(reinterpret_cast<const std::uint8_t*>(from), woqfx::Float::f16, 0);
}
template <class V>
typename V::F load_lanes(const BF16* from) {
    return V::load_scales(reinterpret_cast<const std::uint8_t*>(from), woqfx::Float::bf16, 0);
}
template <class V>
typename V::F load_lanes(const Byte* from) {
    return V::to_float(V::load_bytes(&from->code)) - V::set(128.0f);
}

// a[r][k] is a[k * kStep + r * kRow].
template <class V, class Element, int R, int C, int kStep, int kRow>
inline void accumulate_strip(const float* a, const Element* b, std::size_t b_stride, std::size_t count, float* sums,
                             std::size_t stride) {
    typename V::F acc[R * C];
    unroll<R>([&](auto r) { unroll<C>([&](auto c) { acc[r * C + c] = V::load(sums + r * stride + c * V::kLanes); }); });
    for (std::size_t k = 0; k < count; ++k, a += kStep, b += b_stride) {
        typename V::F lanes[C];
        unroll<C>([&](auto c) { lanes[c] = load_lanes<V>(b + c * V::kLanes); });
        unroll<R>([&](auto r) {
            const typename V::F word = V::set(a[r * kRow]);
            unroll<C>([&](auto c) { acc[r * C + c] = V::fma(lanes[c], word, acc[r * C + c]); });
        });
    }
    unroll<R>([&](auto r) { unroll<C>([&](auto c) { V::store(sums + r * stride + c * V::kLanes, acc[r * C + c]); }); });
}

// All of `width` lanes, a multiple of 16. Few vectors at a time are few chains, which wait for each other.
template <class V, class Element, int R, int kStep, int kRow>
void accumulate_lanes(const float* a, const Element* b, std::size_t b_stride, std::size_t count, std::size_t width,
                      float* sums, std::size_t stride) {
    std::size_t lane = 0;
    const auto strips = [&]<int C>(std::integral_constant<int, C>) {
        for (; lane + C * V::kLanes <= width; lane += C * V::kLanes)
            accumulate_strip<V, Element, R, C, kStep, kRow>(a, b + lane, b_stride, count, sums + lane, stride);
    };
    if constexpr (R <= 3) strips(std::integral_constant<int, 4>{});
    strips(std::integral_constant<int, 2>{});
    strips(std::integral_constant<int, 1>{});
}

// Floats that a thread keeps from call to call.
class Scratch {
public:
    float* get(std::size_t count) {
        if (count > count_) {
            memory_.reset(static_cast<float*>(std::aligned_alloc(64, (count * 4 + 4095) / 4096 * 4096)));
            count_ = memory_ ? count : 0;
            if (!memory_) throw std::bad_alloc();
        }
        return memory_.get();
    }

private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> memory_;
    std::size_t count_ = 0;
};

}  // namespace
