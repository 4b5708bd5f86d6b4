// Activations into the words that kernels multiply. Plain loops, which compilers vectorize; the order of every sum is
// written out, so that a row has the same sums wherever it stands.
#pragma once

#include <cstring>

#include "kernel.h"
#include "lanes.h"
#include "numbers.h"

namespace {

using woqfx::Float;
using woqfx::kStep;
using woqfx::Layout;
using woqfx::Word;
using woqfx::encode::fold_lanes;

inline void load_span(const void* data, Float type, std::size_t from, std::size_t count, float* to) {
    if (type == Float::f32) {
        std::memcpy(to, static_cast<const float*>(data) + from, count * 4);
    } else if (type == Float::bf16) {
        const auto* halves = static_cast<const std::uint16_t*>(data) + from;
        for (std::size_t i = 0; i < count; ++i) to[i] = from_bf16(halves[i]);
    } else {
        const auto* halves = static_cast<const std::uint16_t*>(data) + from;
        for (std::size_t i = 0; i < count; ++i) to[i] = from_f16(halves[i]);
    }
}

// A row as float32, in the order of the codes, each block filled up with zeros to whole steps.
inline void load_row(const woqfx::Source& s, const void* row, float* to) {
    const Layout& l = *s.layout;
    if (!s.order && (l.blocks == 1 || l.block % kStep == 0)) {  // only the end needs filling up
        load_span(row, s.type, 0, l.k, to);
        for (std::size_t i = l.k; i < l.steps * kStep; ++i) to[i] = 0;
        return;
    }
    for (std::size_t b = 0; b < l.blocks; ++b) {
        const std::size_t start = b * l.block, width = l.width_of(b), filled = l.steps_of(b) * kStep;
        if (s.order)
            for (std::size_t i = 0; i < width; ++i)
                to[i] = load_float(row, s.type, static_cast<std::size_t>(s.order[start + i]));
        else
            load_span(row, s.type, start, width, to);
        for (std::size_t i = width; i < filled; ++i) to[i] = 0;
        to += filled;
    }
}

// The sum of whole steps: 8 running sums of every eighth number, then those in pairs.
inline float sum(const float* x, std::size_t count) {
    float part[8] = {};
    for (std::size_t i = 0; i < count; i += 8)
        for (std::size_t j = 0; j < 8; ++j) part[j] += x[i + j];
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

// A step's numbers side by side. Comparisons within a plain loop would become masks that are shuffled about.
using StepFloats __attribute__((vector_size(kStep * 4))) = float;
using StepInts __attribute__((vector_size(kStep * 4))) = std::int32_t;
using StepBytes __attribute__((vector_size(kStep))) = std::uint8_t;
using HalfInts __attribute__((vector_size(kStep * 2))) = std::int32_t;

// By reference: not every instruction set passes 32 bytes in one register.
inline HalfInts low_half(const StepInts& v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
inline HalfInts high_half(const StepInts& v) { return __builtin_shufflevector(v, v, 4, 5, 6, 7); }

// Of whole steps.
inline std::uint32_t largest_magnitude_bits(const float* x, std::size_t count) {
    StepInts most{};  // of non-negative floats the order is that of their bits; NaN is above all
    for (std::size_t i = 0; i < count; i += kStep) {
        StepInts magnitude;
        std::memcpy(&magnitude, x + i, sizeof magnitude);
        magnitude &= 0x7fffffff;
        most = magnitude > most ? magnitude : most;
    }
    const auto larger = [](auto a, auto b) { return a > b ? a : b; };
    return static_cast<std::uint32_t>(fold_lanes(larger(low_half(most), high_half(most)), larger));
}

// round(x / step), half to even, of whole steps, as bytes; returns their sum. Adding 1.5 * 2^23 rounds, and leaves the
// number in the low byte of the sum.
inline std::int32_t quantize(const float* x, std::size_t count, float step, std::uint8_t* to) {
    const StepFloats least = StepFloats{} - 127.0f, most = StepFloats{} + 127.0f;
    StepInts sums{};
    for (std::size_t i = 0; i < count; i += kStep) {
        StepFloats steps;
        std::memcpy(&steps, x + i, sizeof steps);
        steps /= step;
        steps = steps < least ? least : steps;
        steps = steps > most ? most : steps;
        const StepInts codes = reinterpret_cast<StepInts>(steps + 12582912.0f) - 0x4b400000;
        sums += codes;
        const StepBytes bytes = __builtin_convertvector(codes, StepBytes);
        std::memcpy(to + i, &bytes, sizeof bytes);
    }
    return fold_lanes(low_half(sums) + high_half(sums), [](auto a, auto b) { return a + b; });
}

inline std::size_t take_outliers(float* x, std::size_t count, float threshold, std::size_t column,
                                 woqfx::Outlier* found) {
    std::size_t n = 0;
    for (std::size_t i = 0; i < count; ++i)
        if (x[i] >= threshold || -x[i] >= threshold) {
            found[n++] = {static_cast<std::uint32_t>(column + i), x[i]};
            x[i] = 0;
        }
    return n;
}

template <Word kWord>
std::size_t prepare(const woqfx::Source& s, std::size_t row, std::uint32_t* word, woqfx::BlockOfRow* block,
                    float* buffer, woqfx::Outlier* found) {
    const Layout& l = *s.layout;
    load_row(s, static_cast<const char*>(s.x) + row * s.stride * (s.type == Float::f32 ? 4 : 2), buffer);
    std::size_t outliers = 0;
    const std::size_t pieces = l.groups == 1 ? l.blocks : l.group / l.block;  // blocks of a group
    for (std::size_t b = 0; b < l.blocks;) {
        const std::size_t end = b + pieces < l.blocks ? b + pieces : l.blocks;
        std::size_t group = 0;
        for (std::size_t i = b; i < end; ++i) group += l.steps_of(i) * kStep;
        float step = 1;
        if constexpr (kWord == Word::int8x4) {
            if (s.outlier_threshold > 0) {
                float* x = buffer;
                for (std::size_t i = b; i < end; x += l.steps_of(i++) * kStep)
                    outliers += take_outliers(x, l.width_of(i), s.outlier_threshold, i * l.block, found + outliers);
            }
            const std::uint32_t most = largest_magnitude_bits(buffer, group);
            step = most == 0 ? 1.0f : float_of(most) / 127.0f;
            if (most >= 0x7f800000) {  // infinity or NaN: so is the result
                step = float_of(0x7fc00000);
                std::memset(buffer, 0, group * 4);
            }
        }
        for (; b < end; ++b, ++block) {
            const std::size_t count = l.steps_of(b) * kStep;
            block->step = step * s.unit;
            if constexpr (kWord == Word::int8x4) {
                const std::int32_t total = quantize(buffer, count, step, reinterpret_cast<std::uint8_t*>(word));
                block->start = l.origin == woqfx::Origin::offsets
                                   ? bits_of(static_cast<float>(total) * step)
                                   : static_cast<std::uint32_t>(total * s.shift);
                word += count / 4;
            } else {
                if (s.round_to_bf16)
                    for (std::size_t i = 0; i < count; ++i) buffer[i] = from_bf16(to_bf16(buffer[i]));
                block->start = s.shift ? bits_of(sum(buffer, count) * static_cast<float>(s.shift)) : 0;
                if constexpr (kWord == Word::f32) {
                    for (std::size_t i = 0; i < count; ++i) *word++ = bits_of(buffer[i]);
                } else {  // pairs of inputs two apart (layout.h)
                    for (std::size_t i = 0; i < count; i += 4)
                        for (std::size_t j = i; j < i + 2; ++j)
                            *word++ = bits_of(buffer[j]) >> 16 | (bits_of(buffer[j + 2]) & 0xffff0000);
                }
            }
            buffer += count;
        }
    }
    return outliers;
}

}  // namespace
