#include "kv.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace woqfx::runtime {

void PageLayout::add(KVType type, std::size_t heads, std::size_t head_dim) {
    const HeadLayout head = HeadLayout::of(type, head_dim);
    layers.push_back({head, bytes, heads});
    bytes += heads * bytes_of(head);
}

void PageLayout::overlay(KVType type, std::size_t heads, std::size_t head_dim) {
    const HeadLayout head = HeadLayout::of(type, head_dim);
    layers.push_back({head, 0, heads});
    bytes = std::max(bytes, heads * bytes_of(head));
}

Page::Page(std::size_t bytes, std::size_t* counter)
    : bytes_(bytes), counter_(counter), data_(static_cast<std::uint8_t*>(std::aligned_alloc(64, bytes))) {
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes_);
    *counter_ += bytes_;
}

Page::Page(const Page& other) : Page(other.bytes_, other.counter_) { std::memcpy(data_, other.data_, bytes_); }

Page::~Page() {
    std::free(data_);
    *counter_ -= bytes_;
}

Slots::Slot& Slots::at(int slot) {
    const auto found = slots_.find(slot);
    if (found == slots_.end()) throw Error("there is no slot " + std::to_string(slot) + ": it was freed, or never made");
    return found->second;
}

int Slots::add(Slot slot) {
    slots_.emplace(next_, std::move(slot));
    return next_++;
}

int Slots::create() { return add({}); }

void Slots::free(int slot) {
    at(slot);
    slots_.erase(slot);
}

int Slots::copy(int slot, std::size_t length) {
    Slot made = at(slot);
    if (length > made.length)
        throw Error("slot " + std::to_string(slot) + " holds " + std::to_string(made.length) + " tokens, not " +
                    std::to_string(length));
    made.length = length;
    made.pages.resize(divide_up(length, kPage));
    return add(std::move(made));
}

void Slots::trim(int slot, std::size_t length) {
    Slot& trimmed = at(slot);
    if (length > trimmed.length)
        throw Error("slot " + std::to_string(slot) + " holds " + std::to_string(trimmed.length) + " tokens, not " +
                    std::to_string(length));
    trimmed.length = length;
    trimmed.pages.resize(divide_up(length, kPage));
}

std::vector<int> Slots::all() const {
    std::vector<int> names;
    for (const auto& [name, slot] : slots_) names.push_back(name);
    return names;
}

void Slots::reserve(const std::vector<Growth>& growths) {
    std::size_t fresh = 0;
    const auto shared_tail = [](const Slot& slot) {  // the page that the next token goes to, if others have it, too
        return slot.length % kPage != 0 && slot.pages[slot.length / kPage].use_count() > 1;
    };
    for (const auto& [name, count] : growths) {
        const Slot& slot = at(name);
        const std::size_t needed = divide_up(slot.length + count, kPage);
        fresh += needed > slot.pages.size() ? needed - slot.pages.size() : 0;
        fresh += count > 0 && shared_tail(slot);
    }
    require_memory(fresh, layout_);
    for (const auto& [name, count] : growths) {
        Slot& slot = at(name);
        if (count > 0 && shared_tail(slot)) {
            auto& tail = slot.pages[slot.length / kPage];
            tail = std::make_shared<Page>(*tail);
        }
        while (slot.pages.size() < divide_up(slot.length + count, kPage))
            slot.pages.push_back(std::make_shared<Page>(layout_.bytes, &bytes_));
    }
}

void Slots::require_memory(std::size_t pages, const PageLayout& layout) const {
    std::size_t wanted;
    if (__builtin_mul_overflow(pages, layout.bytes, &wanted) || wanted > max_bytes_ - std::min(bytes_, max_bytes_))
        throw OutOfMemory("keys and values come in pages of " + std::to_string(layout.bytes) + " bytes, of which " +
                          std::to_string(pages) + " more " + (pages == 1 ? "is" : "are") + " needed beside the " +
                          std::to_string(bytes_) + " bytes in use; max_memory allows " + std::to_string(max_bytes_) +
                          ": free sequences, raise it, or hold keys and values in int8");
}

std::vector<std::shared_ptr<const Memory>> Slots::make_sources(const std::vector<std::size_t>& lengths) {
    std::size_t pages = 0;
    for (const std::size_t length : lengths) pages += divide_up(length, kPage);
    require_memory(pages, source_layout_);
    std::vector<std::shared_ptr<const Memory>> made;
    for (const std::size_t length : lengths) {
        auto memory = std::make_shared<Memory>();
        memory->length = length;
        while (memory->pages.size() < divide_up(length, kPage))
            memory->pages.push_back(std::make_shared<Page>(source_layout_.bytes, &bytes_));
        made.push_back(std::move(memory));
    }
    return made;
}

std::vector<std::uint8_t*> Memory::data() const {
    std::vector<std::uint8_t*> data;
    for (const auto& page : pages) data.push_back(page->data());
    return data;
}

}  // namespace woqfx::runtime
