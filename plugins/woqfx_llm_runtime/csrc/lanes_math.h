// Functions of whole vectors, over the vectors of an instruction set (V: woqfx_native's vec_*.h).
#pragma once

#include <cstddef>
#include <utility>

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

    // 2^x for x <= 0, 1 for 0 itself; below -125 it is 0. x = n + r; 2^r = 1 + r q(r), q of the fourth degree with the least
    // relative error, 9.2e-8, for |r| <= 1/2.
    static F exp2(F x) {
        constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
        const F least = V::set(-125.0f);
        const F kept = larger(x, least);
        const F shifted = kept + V::set(kRound);
        const F r = kept - (shifted - V::set(kRound));
        F p = V::set(0x1.5bba14p-10f);
        p = V::fma(p, r, V::set(0x1.3cea88p-7f));
        p = V::fma(p, r, V::set(0x1.c6b752p-5f));
        p = V::fma(p, r, V::set(0x1.ebf9bcp-3f));
        p = V::fma(p, r, V::set(0x1.62e42ap-1f));
        p = V::fma(p, r, V::set(1.0f));
        Ints bits, power;
        std::memcpy(&bits, &p, sizeof bits);
        std::memcpy(&power, &shifted, sizeof power);
        bits += power << 23;  // n, in the exponent's place; what the rounding constant leaves beyond is shifted out
        std::memcpy(&p, &bits, sizeof p);
        return x < least ? V::set(0.0f) : p;
    }
    static float exp2(float x) {
        float lanes[kLanes];
        V::store(lanes, exp2(V::set(x)));
        return lanes[0];
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
    template <int kHalf = V::kLanes / 2, class Combine>
    static float fold(F x, Combine combine) {
        if constexpr (kHalf == 0) {
            return x[0];
        } else {
            const F moved = [&]<int... kLane>(std::integer_sequence<int, kLane...>) {
                return __builtin_shufflevector(x, x, (kLane + kHalf) % V::kLanes...);
            }(std::make_integer_sequence<int, V::kLanes>{});
            return fold<kHalf / 2>(combine(x, moved), combine);
        }
    }
    static float sum(F x) {
        return fold(x, [](F a, F b) { return a + b; });
    }
    static float largest(F x) {
        return fold(x, [](F a, F b) { return larger(a, b); });
    }
};

}  // namespace
