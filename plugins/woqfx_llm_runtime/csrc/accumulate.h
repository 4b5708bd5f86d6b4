// The inner loop of attention and of plain products: sums[r][lane] = sum of a[r][k] * b[k][lane] over k in order.
//
// A sum is one chain of multiply-adds in the order of k, whatever the number of rows or the vectors at a time.
#pragma once

#include <algorithm>
#include <bit>
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
struct BF16Pair {  // b[2 k][lane] and b[2 k + 1][lane]
    std::uint16_t bits[2];
};
struct Byte {
    std::uint8_t code;  // a number from -127 to 127, plus 128
};

// What an element is multiplied by, and how many numbers of k it holds.
template <class Element>
struct Factor {
    using Word = float;
    static constexpr std::size_t kNumbers = 1;
};
template <>
struct Factor<BF16Pair> {
    using Word = std::uint32_t;  // two bfloat16, the first in the low half
    static constexpr std::size_t kNumbers = 2;
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
typename V::I load_lanes(const BF16Pair* from) {
    return V::load_words(from);
}
template <class V>
typename V::F load_lanes(const Byte* from) {
    return V::to_float(V::load_bytes(&from->code)) - V::set(128.0f);
}

template <class V>
inline typename V::F multiply_add(typename V::F lanes, typename V::F word, typename V::F sum) {
    return V::fma(lanes, word, sum);
}
// Pairs: by the instruction that has them, else the first of each, then the second.
template <class V>
inline typename V::F multiply_add(typename V::I lanes, typename V::I word, typename V::F sum) {
    if constexpr (requires { V::dot_bf16(sum, lanes, word); }) {
        return V::dot_bf16(sum, lanes, word);
    } else {
        const auto number = [](typename V::IntSum bits) { return V::as_float(std::bit_cast<typename V::I>(bits)); };
        const auto first = [=](typename V::I pairs) { return number(V::as_sum(pairs) << 16); };
        const auto second = [=](typename V::I pairs) { return number(V::as_sum(pairs) & static_cast<int>(0xffff0000)); };
        return V::fma(second(lanes), second(word), V::fma(first(lanes), first(word), sum));
    }
}

// The matrix b: rows of `stride` elements, `rows_of_piece` of them in each piece of memory.
template <class Element>
struct Pieces {
    const Element* const* data;
    std::size_t rows_of_piece, stride;
};

// a[r][k] is a[k * kStep + r * kRow], k counting elements.
template <class V, class Element, int R, int C, int kStep, int kRow>
inline void accumulate_strip(const typename Factor<Element>::Word* a, const Pieces<Element>& b, std::size_t lane,
                             std::size_t count, float* sums, std::size_t stride) {
    typename V::F acc[R * C];
    unroll<R * C>([&](auto i) { acc[i] = V::set(0.0f); });
    for (std::size_t piece = 0; piece * b.rows_of_piece < count; ++piece) {
        const Element* from = b.data[piece] + lane;
        const std::size_t rows = std::min(b.rows_of_piece, count - piece * b.rows_of_piece);
        for (std::size_t k = 0; k < rows; ++k, a += kStep, from += b.stride) {
            decltype(load_lanes<V>(from)) lanes[C];
            unroll<C>([&](auto c) { lanes[c] = load_lanes<V>(from + c * V::kLanes); });
            unroll<R>([&](auto r) {
                const auto word = V::set(a[r * kRow]);
                unroll<C>([&](auto c) { acc[r * C + c] = multiply_add<V>(lanes[c], word, acc[r * C + c]); });
            });
        }
    }
    unroll<R>([&](auto r) { unroll<C>([&](auto c) { V::store(sums + r * stride + c * V::kLanes, acc[r * C + c]); }); });
}

// All of `width` lanes, a multiple of 16. Few vectors at a time are few chains, which wait for each other.
template <class V, class Element, int R, int kStep, int kRow>
void accumulate_lanes(const typename Factor<Element>::Word* a, const Pieces<Element>& b, std::size_t count,
                      std::size_t width, float* sums, std::size_t stride) {
    std::size_t lane = 0;
    const auto strips = [&]<int C>(std::integral_constant<int, C>) {
        for (; lane + C * V::kLanes <= width; lane += C * V::kLanes)
            accumulate_strip<V, Element, R, C, kStep, kRow>(a, b, lane, count, sums + lane, stride);
    };
    constexpr int kOfFour = V::kLanes >= 16 ? 6 : 3;  // rows whose sums fit the registers, four vectors at a time
    if constexpr (R <= kOfFour) strips(std::integral_constant<int, 4>{});
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
