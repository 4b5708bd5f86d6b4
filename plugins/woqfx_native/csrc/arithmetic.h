// The three ways to compute, over the vectors of any instruction set (V: vec_*.h).
//
// kOperands is the number of words in a step of 8 inputs: 8 of one float32, 4 of two bfloat16, 2 of four bytes. Operand
// i of a step is what word i of the activations is multiplied by, in every lane; layout.h says where its codes are.
//
// kTilesAtOnce is how many tiles one or two rows take at a time. Memory is read fastest in one stream, so it is one, unless
// the sums of one would spend longer waiting for each other.
//
// ahead() is how many bytes ahead weights are prefetched. Where a line of codes takes many instructions, too few loads are
// on their way at a time; where it takes few, for a row or two in int8, prefetching makes long streams slower.
// kAheadInto is how near (__builtin_prefetch): 2, the second-level cache; 3, the first. Measured: docs/kernels.md.
//
// kDecodesAside: many rows are multiplied by codes that were decoded before, once for all.
#pragma once

#include "kernel.h"
#include "numbers.h"

namespace {

template <class V_>
struct Arithmetic {
    using V = V_;
    static constexpr const int (&kPanelRows)[V::kPanels] = V::kPanelRows;
    static constexpr int kPanels = V::kPanels, kFewRows = V::kFewRows, kManyRows = V::kManyRows;
    static constexpr bool kDecodesAside = true;
    static constexpr int kAheadInto = 2;
};

template <class V>
struct Fp32 : Arithmetic<V> {
    using F = typename V::F;
    using I = typename V::I;
    using Operand = F;
    using Sum = F;
    static constexpr woqfx::Word kWord = woqfx::Word::f32;
    static constexpr int kOperands = 8;
    static constexpr int kTilesAtOnce = 2;
    static constexpr std::size_t ahead(int, int) { return 2048; }
    static constexpr int kAheadInto = 3;

    template <int kBits>
    struct Decoder {
        typename V::Table table;
        F origin;
        explicit Decoder(const woqfx::Operands& o)
            : table(V::load_table(o.table)), origin(V::set(static_cast<float>(o.origin))) {}
        template <int i>
        F operand(const I (&words)[kBits / 4]) const {
            if constexpr (kBits == 4) {
                return V::template lookup<i % 4 * 8 + i / 4 * 4>(table, words[0]);
            } else {
                return V::template byte_value<i % 4 * 8>(words[i / 4], origin);
            }
        }
    };

    static F load(const void* from) { return V::load(static_cast<const float*>(from)); }
    static void store(void* to, F operand) { V::store(static_cast<float*>(to), operand); }
    static F broadcast(std::uint32_t word) { return V::set(float_of(word)); }
    static F from_words(I words) { return V::as_float(words); }
    static F start(I shift, I sums) { return V::multiply(V::to_float(shift), V::as_float(sums)); }
    static F add_product(F sum, F operand, F word) { return V::fma(operand, word, sum); }
    static F finish(F total, F sum, F scale, float) { return V::fma(sum, scale, total); }
};

// Products of two bfloat16 are exact in float32; the instruction adds two of them at a time.
template <class V>
struct Bf16 : Arithmetic<V> {
    using F = typename V::F;
    using I = typename V::I;
    using Operand = I;
    using Sum = F;
    static constexpr woqfx::Word kWord = woqfx::Word::bf16x2;
    static constexpr int kOperands = 4;
    static constexpr int kTilesAtOnce = 1;
    static constexpr std::size_t ahead(int, int) { return 8192; }

    template <int kBits>
    struct Decoder {
        typename V::PairTable table;
        F origin;
        explicit Decoder(const woqfx::Operands& o)
            : table(V::load_pair_table(o.table)), origin(V::set(static_cast<float>(o.origin))) {}
        template <int i>
        I operand(const I (&words)[kBits / 4]) const {
            if constexpr (kBits == 4) {
                return V::template lookup_pair<i % 2 * 8 + i / 2 * 4>(table, words[0]);
            } else {  // codes less the origin have 8 significant bits: nothing is rounded
                return V::upper_halves(V::template byte_value<i % 2 * 8>(words[i / 2], origin),
                                       V::template byte_value<i % 2 * 8 + 16>(words[i / 2], origin));
            }
        }
    };

    static I load(const void* from) { return V::load_words(from); }
    static void store(void* to, I operand) { V::store_words(to, operand); }
    static I broadcast(std::uint32_t word) { return V::set(word); }
    static F from_words(I words) { return V::as_float(words); }
    static F start(I shift, I sums) { return V::multiply(V::to_float(shift), V::as_float(sums)); }
    static F add_product(F sum, I operand, I word) { return V::dot_bf16(sum, operand, word); }
    static F finish(F total, F sum, F scale, float) { return V::fma(sum, scale, total); }
};

template <class V>
struct Int8 : Arithmetic<V> {
    using F = typename V::F;
    using I = typename V::I;
    using Operand = I;
    using Sum = typename V::IntSum;
    static constexpr woqfx::Word kWord = woqfx::Word::int8x4;
    static constexpr int kOperands = 2;
    static constexpr int kTilesAtOnce = 1;
    static constexpr std::size_t ahead(int, int rows) { return rows > 2 ? 8192 : 0; }
    static constexpr bool kDecodesAside = !V::kDecodesBytesFreely;
    static constexpr int kManyRows = kDecodesAside ? V::kManyRows : V::kFewRows;

    template <int kBits>
    struct Decoder {
        typename V::ByteTable table;
        explicit Decoder(const woqfx::Operands& o) : table(V::load_byte_table(o.table)) {}
        template <int i>
        I operand(const I (&words)[kBits / 4]) const {
            if constexpr (kBits == 4) {
                return V::template lookup_bytes<i * 4>(table, words[0]);
            } else if constexpr (V::kUnsignedCodes) {
                return words[i];
            } else {
                return V::flip(words[i], V::set(std::uint32_t{0x80808080}));  // a code less 128, as int8
            }
        }
    };

    static I load(const void* from) { return V::load_words(from); }
    static void store(void* to, I operand) { V::store_words(to, operand); }
    static I broadcast(std::uint32_t word) { return V::set(word); }
    static Sum from_words(I words) { return V::as_sum(words); }
    static Sum start(I shift, I sums) { return V::as_sum(V::multiply(shift, sums)); }
    static Sum add_product(Sum sum, I operand, I word) { return V::dot_int8(sum, operand, word); }
    static F finish(F total, Sum sum, F scale, float step) {
        return V::fma(V::to_float(sum), V::multiply(scale, V::set(step)), total);
    }
};

}  // namespace
