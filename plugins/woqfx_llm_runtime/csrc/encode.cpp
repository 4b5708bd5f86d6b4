// The engine's encoder: from sources to what the decoder's cross attention looks at.
#include <set>
#include <string>

#include "engine.h"

namespace woqfx::runtime {

void Engine::check(const std::vector<Text>& texts, const std::int64_t* tokens, std::size_t count) const {
    if (!model_.encoder) throw Error("a model without an encoder takes no source: put all tokens into `forward`");
    std::set<int> seen;
    std::size_t sum = 0;
    for (const Text& text : texts) {
        if (!seen.insert(text.slot).second)
            throw Error("slot " + std::to_string(text.slot) + " stands twice among sources");
        if (slots_.source(text.slot) || slots_.length(text.slot) > 0)
            throw Error("slot " + std::to_string(text.slot) + " has a source or tokens: give a source to a new slot");
        if (text.count < 1 || text.count > count - sum)
            throw Error("sources of " + std::to_string(count) + " tokens, where their lengths ask for others");
        if (text.count > model_.context)
            throw Error("a source of " + std::to_string(text.count) + " tokens is longer than the model's context of " +
                        std::to_string(model_.context));
        sum += text.count;
    }
    if (sum != count)
        throw Error("sources of " + std::to_string(count) + " tokens, of which their lengths take fewer");
    check_tokens(tokens, count);
}

void Engine::encode(const std::vector<Text>& texts, const std::int64_t* tokens, std::size_t count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_.store(false);
    check(texts, tokens, count);
    std::vector<std::size_t> lengths;
    for (const Text& text : texts) lengths.push_back(text.count);
    const auto sources = slots_.make_sources(lengths);

    // A sequence sees all of itself: as many whole ones at a time as make a step, and at least one.
    std::size_t used = 0;
    std::vector<Memory> own;
    for (std::size_t first = 0, next = 0; first < texts.size(); first = next) {
        Batch batch;
        own.clear();
        for (; next < texts.size(); ++next) {
            const std::size_t row = batch.tokens.size(), rows = lengths[next];
            if (row > 0 && row + rows > Step::kRows) break;
            Memory memory;
            while (memory.pages.size() < divide_up(rows, kPage))
                memory.pages.push_back(std::make_shared<Page>(encoding_layout_.bytes, &used));
            own.push_back(std::move(memory));
            batch.pieces.push_back({own.back().data(), row, rows, 0, rows, sources[next]->data(), rows});
            batch.tokens.insert(batch.tokens.end(), tokens, tokens + rows);
            tokens += rows;
        }
        encoding_->encode(batch, threads_, cancelled_);
    }
    for (std::size_t i = 0; i < texts.size(); ++i) slots_.set_source(texts[i].slot, sources[i]);
}

std::size_t Engine::source_length(int slot) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Memory* source = slots_.source(slot);
    return source ? source->length : 0;
}

}  // namespace woqfx::runtime
