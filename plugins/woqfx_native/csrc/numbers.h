// Conversions among float types, a number at a time, in arithmetic that compilers turn into vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "api.h"

namespace {  // each translation unit has its own, compiled for its instruction set

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float from_bf16(std::uint16_t half) { return float_of(static_cast<std::uint32_t>(half) << 16); }

// Half to even; a NaN stays one.
inline std::uint16_t to_bf16(float value) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16 | 0x40) : rounded);
}

// Exponent and mantissa move to their places in a float32; a multiplication by 2^112 corrects the exponent, and with
// it subnormals.
inline float from_f16(std::uint16_t half) {
    const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fff) << 13;
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    const float finite = float_of(magnitude) * 0x1p112f;
    const std::uint32_t bits = magnitude >= 0x0f800000 ? (magnitude | 0x7f800000) : bits_of(finite);
    return float_of(bits | sign);
}

// Half to even. Below the smallest normal float16, adding 0.5 makes the float32 adder round at 2^-24.
inline std::uint16_t to_f16(float value) {
    const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    const std::uint32_t normal = (magnitude + 0xc8000fff + (magnitude >> 13 & 1)) >> 13;
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    const std::uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const std::uint32_t half = magnitude >= 0x47800000 ? special : magnitude < 0x38800000 ? subnormal : normal;
    return static_cast<std::uint16_t>(half | (bits >> 16 & 0x8000));
}

inline float load_float(const void* data, woqfx::Float type, std::size_t i) {
    if (type == woqfx::Float::f32) {
        float value;
        std::memcpy(&value, static_cast<const char*>(data) + 4 * i, 4);
        return value;
    }
    std::uint16_t half;
    std::memcpy(&half, static_cast<const char*>(data) + 2 * i, 2);
    return type == woqfx::Float::f16 ? from_f16(half) : from_bf16(half);
}

inline void store_float(void* data, woqfx::Float type, std::size_t i, float value) {
    if (type == woqfx::Float::f32) {
        std::memcpy(static_cast<char*>(data) + 4 * i, &value, 4);
        return;
    }
    const std::uint16_t half = type == woqfx::Float::f16 ? to_f16(value) : to_bf16(value);
    std::memcpy(static_cast<char*>(data) + 2 * i, &half, 2);
}

}  // namespace
