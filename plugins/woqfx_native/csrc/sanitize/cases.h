// Random weights in buffers of exactly their size, so that a sanitizer sees the first byte that is read beyond one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "../api.h"

namespace woqfx {

// splitmix64: the same numbers everywhere, from any seed.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    std::size_t below(std::size_t n) { return next() % n; }
    bool one_in(std::size_t n) { return below(n) == 0; }
    template <class T, std::size_t N>
    T pick(const T (&choices)[N]) {
        return choices[below(N)];
    }
    float uniform() { return static_cast<float>(next() >> 40) * 0x1p-23f - 1; }  // [-1, 1)

private:
    std::uint64_t state_;
};

inline void expect(bool ok, const char* what) {
    if (ok) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::abort();
}

// Whether `call` throws an Error; whatever else it throws goes through.
template <class Call>
bool refused(Call call) {
    try {
        call();
    } catch (const Error&) {
        return true;
    }
    return false;
}

inline std::size_t packed_width(std::size_t k, int bits) { return (k * static_cast<std::size_t>(bits) + 7) / 8; }

inline std::size_t size_of(Float type) { return type == Float::f32 ? 4 : 2; }

// Numbers between -1 and 1 as a type's bytes; fp16 and bf16 ones with a few bits set, so that no conversion is needed.
inline std::vector<std::uint8_t> numbers(Random& random, Float type, std::size_t count) {
    std::vector<std::uint8_t> bytes(count * size_of(type));
    for (std::size_t i = 0; i < count; ++i) {
        const float value = random.uniform();
        std::uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const std::uint16_t sign = bits >> 31 << 15;
        const std::uint16_t half = type == Float::bf16 ? static_cast<std::uint16_t>(bits >> 16)
                                                       : static_cast<std::uint16_t>(sign | 0x2c00 | (bits & 0x0fff));
        if (type == Float::f32) std::memcpy(&bytes[4 * i], &value, 4);
        else std::memcpy(&bytes[2 * i], &half, 2);
    }
    return bytes;
}

// A weight as checkpoints hold it, and the memory behind it.
struct Plain {
    WeightView view;
    std::vector<std::uint8_t> codes, scales, zeros, offsets;
    std::vector<float> levels;
    std::vector<std::int32_t> order;

    std::size_t groups() const { return (view.k + view.group - 1) / view.group; }

    Plain(Random& random, std::size_t most_rows, std::size_t most_columns) {
        view.n = 1 + random.below(most_rows), view.k = 1 + random.below(most_columns);
        const std::size_t group = random.pick<std::size_t>({1, 7, 16, 20, 32, 48, 64, 128, view.k, view.k});
        view.group = std::min(group, view.k);
        const bool codebook = random.one_in(2);
        view.bits = codebook ? 1 + static_cast<int>(random.below(4)) : 1 + static_cast<int>(random.below(8));
        view.scale_type = random.pick({Float::f32, Float::f16, Float::bf16});
        std::size_t limit = std::size_t{1} << view.bits;
        if (codebook) {
            limit = 2 + random.below(limit - 1);
            for (std::size_t i = 0; i < limit; ++i) levels.push_back(random.uniform());
            view.levels = levels.data(), view.level_count = limit;
        } else if (random.one_in(2)) {
            zeros.resize(view.n * groups());
            for (auto& zero : zeros) zero = static_cast<std::uint8_t>(random.below(limit));
            view.zeros = zeros.data();
        }
        codes.resize(view.n * packed_width(view.k, view.bits));
        for (std::size_t row = 0; row < view.n; ++row)
            for (std::size_t column = 0; column < view.k; ++column) set_code(row, column, random.below(limit));
        scales = numbers(random, view.scale_type, view.n * groups());
        if (!codebook && zeros.empty() && random.one_in(2)) {
            offsets = numbers(random, view.scale_type, view.n * groups());
            view.offsets = offsets.data();
        }
        if (random.one_in(3)) {
            order.resize(view.k);
            std::iota(order.begin(), order.end(), 0);
            for (std::size_t i = view.k; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
            view.order = order.data();
        }
        view.codes = codes.data(), view.scales = scales.data();
    }
    Plain(const Plain&) = delete;

    std::size_t code(std::size_t row, std::size_t column) const {
        std::size_t found = 0;
        for (int bit = 0; bit < view.bits; ++bit) found |= static_cast<std::size_t>(bit_at(row, column, bit)) << bit;
        return found;
    }

private:
    std::size_t place(std::size_t row, std::size_t column, int bit) const {
        return row * packed_width(view.k, view.bits) * 8 + column * view.bits + bit;
    }
    bool bit_at(std::size_t row, std::size_t column, int bit) const {
        const std::size_t at = place(row, column, bit);
        return codes[at / 8] >> at % 8 & 1;
    }
    void set_code(std::size_t row, std::size_t column, std::size_t code) {
        for (int bit = 0; bit < view.bits; ++bit) {
            const std::size_t at = place(row, column, bit);
            codes[at / 8] |= static_cast<std::uint8_t>((code >> bit & 1) << at % 8);
        }
    }
};

inline std::vector<Isa> isas_here() {
    std::vector<Isa> found;
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx_vnni, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16,
                          Isa::amx})
        if (supported(isa)) found.push_back(isa);
    return found;
}

}  // namespace woqfx
