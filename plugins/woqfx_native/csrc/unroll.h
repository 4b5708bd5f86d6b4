// Loops that are unrolled here rather than by the compiler, which then keeps arrays of vectors in registers.
#pragma once

#include <type_traits>
#include <utility>

namespace {

template <class F, int... kIndex>
[[gnu::always_inline]] inline void unroll(std::integer_sequence<int, kIndex...>, F&& f) {
    (f(std::integral_constant<int, kIndex>{}), ...);
}

// f(i) for i below kCount, each i a constant.
template <int kCount, class F>
[[gnu::always_inline]] inline void unroll(F&& f) {
    unroll(std::make_integer_sequence<int, kCount>{}, f);
}

}  // namespace
