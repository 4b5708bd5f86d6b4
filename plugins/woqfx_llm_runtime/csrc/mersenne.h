// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), in the states of PyTorch's CPU generator.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "api.h"

namespace woqfx::runtime {

class Mersenne {
public:
    // Bytes of `torch.Generator.get_state()`: a seed (uint64), words left and one, a flag (int32 each), the place of the
    // next word (uint64), and the words (uint64 [624]); then what normal numbers need.
    static constexpr std::size_t kStateBytes = 5056;

    explicit Mersenne(const std::uint8_t* state) {
        const auto left = read<std::int32_t>(state + kLeft);
        const auto next = read<std::uint64_t>(state + kNext);
        if (left < 1 || left > std::int32_t{kWords} || next > kWords) throw Error("no state of a Mersenne Twister");
        next_ = left == 1 ? kWords : next;
        for (std::size_t i = 0; i < kWords; ++i)
            words_[i] = static_cast<std::uint32_t>(read<std::uint64_t>(state + kFirst + 8 * i));
    }

    void write(std::uint8_t* state) const {
        write(state + kLeft, static_cast<std::int32_t>(kWords + 1 - next_));
        write(state + kNext, static_cast<std::uint64_t>(next_));
        for (std::size_t i = 0; i < kWords; ++i) write(state + kFirst + 8 * i, std::uint64_t{words_[i]});
    }

    std::uint32_t word() {
        if (next_ == kWords) twist();
        return tempered(words_[next_++]);
    }

    void fill(std::uint32_t* out, std::size_t count) {
        stretches(count, [&](std::size_t size) {
            for (std::size_t i = 0; i < size; ++i) out[i] = tempered(words_[next_ + i]);
            out += size;
        });
    }

    void skip(std::size_t count) {
        stretches(count, [](std::size_t) {});
    }

private:
    static constexpr std::size_t kWords = 624, kAhead = 397, kLeft = 8, kNext = 16, kFirst = 24;

    template <class T>
    static T read(const std::uint8_t* from) {
        T value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    template <class T>
    static void write(std::uint8_t* to, T value) {
        std::memcpy(to, &value, sizeof value);
    }

    template <class F>
    void stretches(std::size_t count, F&& each) {
        while (count) {
            if (next_ == kWords) twist();
            const std::size_t size = std::min(count, kWords - next_);
            each(size);
            next_ += size, count -= size;
        }
    }

    static std::uint32_t tempered(std::uint32_t y) {
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        return y ^ (y >> 18);
    }
    static std::uint32_t mixed(std::uint32_t one, std::uint32_t other) {
        const std::uint32_t y = (one & 0x80000000u) | (other & 0x7fffffffu);
        return (y >> 1) ^ ((0u - (other & 1u)) & 0x9908b0dfu);
    }
    // In loops that the compiler turns into vectors.
    void twist() {
        std::uint32_t* const w = words_;
        for (std::size_t i = 0; i < kWords - kAhead; ++i) w[i] = w[i + kAhead] ^ mixed(w[i], w[i + 1]);
        for (std::size_t i = kWords - kAhead; i < kWords - 1; ++i)
            w[i] = w[i + kAhead - kWords] ^ mixed(w[i], w[i + 1]);
        w[kWords - 1] = w[kAhead - 1] ^ mixed(w[kWords - 1], w[0]);
        next_ = 0;
    }

    std::uint32_t words_[kWords];
    std::size_t next_;
};

}  // namespace woqfx::runtime
