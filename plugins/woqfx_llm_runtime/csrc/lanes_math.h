// Functions of whole vectors, over the vectors of an instruction set (V: woqfx_native's vec_*.h).
#pragma once

#include <cstddef>

#include "numbers.h"

namespace {

template <class V>
struct Math {
    using F = typename V::F;
    using Ints = typename V::IntSum;
    static constexpr std::size_t kLanes = V::kLanes;

    static F larger(F a, F b) { return a > b ? a : b; }
    static F smaller(F a, F b) { return a < b ? a : b; }

    // e^x within 2 units in the last place; below -87.3 it is 0, above 88 it stays finite. x = n ln 2 + r, with ln 2 in two
    // parts (Cody and Waite); e^r by its Taylor series, |r| <= ln(2) / 2.
    static F exp(F x) {
        constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers
        const F least = V::set(-87.33f);
        const F kept = smaller(larger(x, least), V::set(88.0f));
        const F shifted = V::fma(kept, V::set(1.44269504f), V::set(kRound));
        const F n = shifted - V::set(kRound);
        F r = V::fma(n, V::set(-0.693359375f), kept);
        r = V::fma(n, V::set(2.12194440e-4f), r);
        F p = V::set(1.0f / 5040);
        p = V::fma(p, r, V::set(1.0f / 720));
        p = V::fma(p, r, V::set(1.0f / 120));
        p = V::fma(p, r, V::set(1.0f / 24));
        p = V::fma(p, r, V::set(1.0f / 6));
        p = V::fma(p, r, V::set(0.5f));
        p = V::fma(p, r, V::set(1.0f));
        p = V::fma(p, r, V::set(1.0f));
        Ints bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        bits = (bits - 0x4b400000 + 127) << 23;
        F power;
        std::memcpy(&power, &bits, sizeof power);
        return x < least ? V::set(0.0f) : p * power;
    }

    static F sigmoid(F x) { return V::set(1.0f) / (V::set(1.0f) + exp(-x)); }
    static F tanh(F x) {
        const F e = exp(smaller(larger(x + x, V::set(-30.0f)), V::set(30.0f)));
        return (e - V::set(1.0f)) / (e + V::set(1.0f));
    }

    // Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: off by at most 1.5e-7.
    static F erf(F x) {
        const F size = larger(x, -x);
        const F t = V::set(1.0f) / V::fma(V::set(0.3275911f), size, V::set(1.0f));
        F p = V::set(1.061405429f);
        p = V::fma(p, t, V::set(-1.453152027f));
        p = V::fma(p, t, V::set(1.421413741f));
        p = V::fma(p, t, V::set(-0.284496736f));
        p = V::fma(p, t, V::set(0.254829592f));
        const F y = V::set(1.0f) - p * t * exp(-(x * x));
        return x < V::set(0.0f) ? -y : y;
    }

    // Lanes are folded by halves: 0 with 8, 1 with 9, and so on, then 0 with 4.
    template <class Combine>
    static float fold(F x, Combine combine) {
        float lanes[kLanes];
        V::store(lanes, x);
        for (std::size_t half = kLanes / 2; half; half /= 2)
            for (std::size_t i = 0; i < half; ++i) lanes[i] = combine(lanes[i], lanes[i + half]);
        return lanes[0];
    }
    static float sum(F x) {
        return fold(x, [](float a, float b) { return a + b; });
    }
    static float largest(F x) {
        return fold(x, [](float a, float b) { return a > b ? a : b; });
    }
};

}  // namespace
