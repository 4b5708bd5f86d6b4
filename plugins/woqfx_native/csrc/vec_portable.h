// Vectors of 4 lanes in the compilers' own vector types: SSE2, NEON or whatever the target has.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel.h"
#include "numbers.h"

namespace {

struct Portable {
    static constexpr int kLanes = 4;
    static constexpr int kPanels = 3, kPanelRows[kPanels] = {4, 2, 1}, kFewRows = 2, kManyRows = 4;
    static constexpr bool kUnsignedCodes = false, kDecodesBytesFreely = false;

    typedef float F __attribute__((vector_size(16)));
    typedef std::int32_t I __attribute__((vector_size(16)));
    typedef std::uint32_t U __attribute__((vector_size(16)));
    using IntSum = I;
    struct Table {
        std::uint32_t entries[16];
    };
    using ByteTable = Table;

    template <class T>
    static T load_as(const void* from) {
        T value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    static F load(const float* from) { return load_as<F>(from); }
    static void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
    static I load_words(const void* from) { return load_as<I>(from); }
    static void store_words(void* to, I value) { std::memcpy(to, &value, sizeof value); }
    static I load_bytes(const std::uint8_t* from) { return I{from[0], from[1], from[2], from[3]}; }
    static F load_scales(const std::uint8_t* from, woqfx::Float type, std::size_t lane) {
        F scales;
        for (int i = 0; i < kLanes; ++i) scales[i] = load_float(from, type, lane + static_cast<std::size_t>(i));
        return scales;
    }
    static F set(float value) { return F{value, value, value, value}; }
    static I set(std::uint32_t word) {
        const auto value = static_cast<std::int32_t>(word);
        return I{value, value, value, value};
    }
    static F as_float(I bits) { return load_as<F>(&bits); }
    static IntSum as_sum(I words) { return words; }
    static F to_float(I value) { return __builtin_convertvector(value, F); }
    static F multiply(F a, F b) { return a * b; }
    static I multiply(I a, I b) { return I(U(a) * U(b)); }
    static I subtract(I a, I b) { return I(U(a) - U(b)); }
    static I flip(I a, I b) { return a ^ b; }
    static F fma(F a, F b, F c) {
#if defined(__FP_FAST_FMAF)
        F result;
        for (int i = 0; i < kLanes; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
        return result;
#else
        return a * b + c;  // compiled without contraction
#endif
    }

    static Table load_table(const std::uint32_t* entries) { return load_as<Table>(entries); }
    static Table load_byte_table(const std::uint32_t* entries) { return load_as<Table>(entries); }

    template <int kShift>
    static F lookup(const Table& table, I words) {
        F result;
        for (int i = 0; i < kLanes; ++i)
            result[i] = float_of(table.entries[static_cast<std::uint32_t>(words[i]) >> kShift & 15]);
        return result;
    }
    template <int kShift>
    static F byte_value(I words, F origin) {
        const F value = as_float(I((U(words) >> kShift & 0xff) | 0x4b000000));  // 2^23 + byte
        return value - (origin + 0x1p23f);
    }
    template <int kShift>
    static I lookup_bytes(const Table& table, I words) {
        I result;
        for (int i = 0; i < kLanes; ++i) {
            const std::uint32_t word = static_cast<std::uint32_t>(words[i]) >> kShift;
            std::uint32_t bytes = 0;
            for (int j = 0; j < 32; j += 8) bytes |= (table.entries[word >> j & 15] & 0xff) << j;
            result[i] = static_cast<std::int32_t>(bytes);
        }
        return result;
    }
    static I dot_int8(I sum, I a, I b) {
        sum += (a << 24 >> 24) * (b << 24 >> 24);
        sum += (a << 16 >> 24) * (b << 16 >> 24);
        sum += (a << 8 >> 24) * (b << 8 >> 24);
        return sum + (a >> 24) * (b >> 24);
    }
};

}  // namespace
