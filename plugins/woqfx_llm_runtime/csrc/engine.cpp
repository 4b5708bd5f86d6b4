#include "engine.h"

#include <algorithm>
#include <set>
#include <string>

namespace woqfx::runtime {
namespace {

Model checked(Model model) {
    model.check();
    return model;
}

PageLayout layout_of(const Model& model, KVType type) {
    PageLayout layout;
    for (const Layer& layer : model.layers) layout.add(type, layer.attention.kv_heads, layer.attention.head_dim);
    return layout;
}

PageLayout layout_of_sources(const Model& model, KVType type) {
    PageLayout layout;
    for (const Layer& layer : model.layers)
        layer.cross ? layout.add(type, layer.cross->kv_heads, layer.cross->head_dim) : layout.add(type, 0, 0);
    return layout;
}

// An encoder's own keys and values are let go layer by layer, and as exact as they come.
PageLayout layout_of_encoding(const Model& model) {
    PageLayout layout;
    if (model.encoder)
        for (const Layer& layer : model.encoder->layers)
            layout.overlay(KVType::f32, layer.attention.kv_heads, layer.attention.head_dim);
    return layout;
}

}  // namespace

Engine::Engine(Model model, KVType kv, std::size_t max_bytes, int threads)
    : model_(checked(std::move(model))),
      threads_(threads),
      slots_(layout_of(model_, kv), layout_of_sources(model_, kv), max_bytes),
      step_(model_, model_.layers, slots_.layout(), slots_.source_layout()),
      encoding_layout_(layout_of_encoding(model_)) {
    if (model_.encoder) encoding_.emplace(model_, model_.encoder->layers, encoding_layout_, slots_.source_layout());
}

std::size_t Engine::kv_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return slots_.bytes();
}

std::vector<int> Engine::slots() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return slots_.all();
}

int Engine::create() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return slots_.create();
}

void Engine::free(int slot) {
    const std::lock_guard<std::mutex> lock(mutex_);
    slots_.free(slot);
}

int Engine::copy(int slot, std::size_t length) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return slots_.copy(slot, length);
}

void Engine::trim(int slot, std::size_t length) {
    const std::lock_guard<std::mutex> lock(mutex_);
    slots_.trim(slot, length);
}

std::size_t Engine::length(int slot) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return slots_.length(slot);
}

void Engine::check(const std::vector<Part>& parts, const std::int64_t* tokens, std::size_t count) const {
    std::set<int> seen;
    std::size_t sum = 0;
    for (const Part& part : parts) {
        if (!seen.insert(part.slot).second)
            throw Error("slot " + std::to_string(part.slot) + " stands twice in one step");
        if (part.count < 1 || part.count > count - sum)
            throw Error("a step of " + std::to_string(count) + " tokens, where its parts ask for others");
        sum += part.count;
        if (part.wanted > part.count)
            throw Error("logits of " + std::to_string(part.wanted) + " tokens are wanted, where " +
                        std::to_string(part.count) + " are given");
        const std::size_t held = slots_.length(part.slot);
        if (model_.encoder && !slots_.source(part.slot))
            throw Error("slot " + std::to_string(part.slot) + " has no source, where the model is one with an encoder");
        if (part.count > model_.context - std::min(held, model_.context))
            throw Error("a sequence of " + std::to_string(held) + " tokens and " + std::to_string(part.count) +
                        " more is longer than the model's context of " + std::to_string(model_.context) +
                        ": shorten the prompt, or ask for fewer new tokens");
    }
    if (sum != count) throw Error("a step of " + std::to_string(count) + " tokens, of which its parts take fewer");
    check_tokens(tokens, count);
}

void Engine::check_tokens(const std::int64_t* tokens, std::size_t count) const {
    for (std::size_t i = 0; i < count; ++i)
        if (tokens[i] < 0 || static_cast<std::uint64_t>(tokens[i]) >= model_.vocabulary)
            throw Error("token " + std::to_string(tokens[i]) + " is outside the vocabulary of " +
                        std::to_string(model_.vocabulary));
}

void Engine::forward(const std::vector<Part>& parts, const std::int64_t* tokens, std::size_t count, float* logits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_.store(false);
    check(parts, tokens, count);
    std::vector<Slots::Growth> growths;
    for (const Part& part : parts) growths.push_back({part.slot, part.count});
    slots_.reserve(growths);

    Batch batch;
    const auto run = [&] {
        if (batch.pieces.empty()) return;
        batch.logits = logits;
        step_.run(batch, threads_, cancelled_);
        logits += batch.wanted.size() * model_.vocabulary;
        batch = {};
    };
    for (const Part& part : parts) {
        const std::size_t held = slots_.length(part.slot);
        for (std::size_t done = 0; done < part.count;) {
            const std::size_t row = batch.tokens.size(), rows = std::min(part.count - done, Step::kRows - row);
            batch.pieces.push_back({slots_.pages(part.slot), row, rows, held + done, held + part.count});
            if (const Memory* source = slots_.source(part.slot))
                batch.pieces.back().source = source->data(), batch.pieces.back().source_length = source->length;
            batch.tokens.insert(batch.tokens.end(), tokens, tokens + rows);
            for (std::size_t i = 0; i < rows; ++i)
                if (done + i + part.wanted >= part.count) batch.wanted.push_back(row + i);
            tokens += rows, done += rows;
            if (batch.tokens.size() == Step::kRows) run();
        }
    }
    run();
    for (const Part& part : parts) slots_.advance(part.slot, part.count);
}

}  // namespace woqfx::runtime
