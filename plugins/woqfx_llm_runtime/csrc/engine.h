// A model with its sequences: what Python holds.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <vector>

#include "draw.h"
#include "kv.h"
#include "model.h"
#include "step.h"

namespace woqfx::runtime {

// What a call appends to one sequence; logits are wanted of the last `wanted` tokens.
struct Part {
    int slot;
    std::size_t count, wanted;
};

// The source of one sequence: what its encoder reads.
struct Text {
    int slot;
    std::size_t count;
};

// Methods may be called from any thread; one call at a time has the model, others wait.
class Engine {
public:
    // Error unless the model fits together. `max_bytes` bounds keys and values; `threads` below 1: all of the pool.
    Engine(Model model, KVType kv, std::size_t max_bytes, int threads);
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    const Model& model() const { return model_; }
    std::size_t max_bytes() const { return slots_.max_bytes(); }
    std::size_t kv_bytes() const;
    std::size_t kv_bytes_per_token() const { return slots_.layout().bytes / kPage; }

    std::vector<int> slots() const;
    int create();
    void free(int slot);
    int copy(int slot, std::size_t length);
    void trim(int slot, std::size_t length);
    std::size_t length(int slot) const;

    // The sources of some sequences without one that hold no token yet, tokens of one after the other's. Their copies
    // share what the encoder made of them. After an exception all sequences are as they were.
    void encode(const std::vector<Text>&, const std::int64_t* tokens, std::size_t count);
    std::size_t source_length(int slot) const;  // 0: it has none

    // The next tokens of some sequences, those of each part one after the other; float32 logits [sum of wanted, vocabulary]
    // in the same order. After an exception all sequences are as they were.
    void forward(const std::vector<Part>&, const std::int64_t* tokens, std::size_t count, float* logits);

    // The largest of each row of logits [rows, vocabulary]: the first of equals, and a NaN before any number.
    std::vector<std::int64_t> likeliest(const float* logits, std::size_t rows) const;

    // As woqfx::runtime::draw, for rows of [vocabulary].
    std::vector<std::vector<std::int64_t>> draw(const std::vector<Draws>& all) const {
        return runtime::draw(all, model_.vocabulary, threads_);
    }

    // Ends the call of `forward` that runs, if any, with Cancelled.
    void cancel() { cancelled_.store(true); }

private:
    void check(const std::vector<Part>&, const std::int64_t* tokens, std::size_t count) const;
    void check(const std::vector<Text>&, const std::int64_t* tokens, std::size_t count) const;
    void check_tokens(const std::int64_t* tokens, std::size_t count) const;

    const Model model_;
    const int threads_;
    mutable std::mutex mutex_;
    Slots slots_;
    Step step_;
    PageLayout encoding_layout_;
    std::optional<Step> encoding_;
    std::atomic<bool> cancelled_{false};
};

}  // namespace woqfx::runtime
