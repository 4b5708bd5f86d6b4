// Drawing tokens as transformers' sampling draws them with PyTorch's random numbers.
//
// transformers filters a row of logits by thresholds, and torch.multinomial then takes the largest of p / e, with a random
// e of an exponential distribution for each token of the vocabulary. Here the thresholds are found without sorting the
// vocabulary, and e is made where p is not 0. Floating point numbers are added in another order than PyTorch adds them,
// so what lies too near a border or a rival is left undecided.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace woqfx::runtime {

// What is done to logits, in this order: divided by the temperature; the `top_k` largest are kept (0: all); of those the
// likeliest that together have the probability `top_p` (1: all); of those what has `min_p` of the largest's probability.
struct Sampling {
    float temperature = 1;
    std::size_t top_k = 0;
    float top_p = 1, min_p = 0;
};

// Rows that are drawn one after the other from one source of random numbers: either the state of a generator of PyTorch,
// whose numbers are words of a Mersenne Twister, or the numbers themselves, [rows, vocabulary].
struct Draws {
    Sampling sampling;
    std::vector<const float*> rows;  // null: its random numbers are passed over, and token 0 is drawn
    std::uint8_t* state = nullptr;   // goes on, unless a row is undecided
    const float* noise = nullptr;
};

constexpr std::int64_t kUndecided = -1;

// A token for each row, or kUndecided for all rows of a `Draws` with one that is.
std::vector<std::vector<std::int64_t>> draw(const std::vector<Draws>&, std::size_t vocabulary, int threads);

}  // namespace woqfx::runtime
