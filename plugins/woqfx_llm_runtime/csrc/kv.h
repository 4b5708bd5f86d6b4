// Keys and values of sequences, in pages of kPage positions that sequences with a common beginning share.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "api.h"
#include "layout.h"
#include "ops.h"

namespace woqfx::runtime {

// More memory than was allowed for keys and values.
struct OutOfMemory : Error {
    using Error::Error;
};

// Where the heads of all layers lie in a page.
struct PageLayout {
    struct Layer {
        HeadLayout head;
        std::size_t at, heads;

        std::size_t of(std::size_t number) const { return at + number * bytes_of(head); }
    };
    static std::size_t bytes_of(const HeadLayout& head) { return divide_up(head.bytes, 64) * 64; }

    std::vector<Layer> layers;
    std::size_t bytes = 0;

    void add(KVType, std::size_t heads, std::size_t head_dim);  // the next layer, beside those before
    void overlay(KVType, std::size_t heads, std::size_t head_dim);  // the next layer, where those before were
};

class Page {
public:
    Page(std::size_t bytes, std::size_t* counter);  // zeros: what is read beyond a sequence's end must be finite
    Page(const Page&);
    Page& operator=(const Page&) = delete;
    ~Page();
    std::uint8_t* data() { return data_; }

private:
    std::size_t bytes_;
    std::size_t* counter_;  // of bytes in use
    std::uint8_t* data_;
};

// Keys and values of all positions, in a layout that the owner knows.
struct Memory {
    std::size_t length = 0;
    std::vector<std::shared_ptr<Page>> pages;

    std::vector<std::uint8_t*> data() const;  // of each page, from position 0 on
};

// All sequences: each in pages of `layout`, and with a source of `source_layout` if the model has an encoder. Not for
// several threads at once.
class Slots {
public:
    Slots(PageLayout layout, PageLayout source_layout, std::size_t max_bytes)
        : layout_(std::move(layout)), source_layout_(std::move(source_layout)), max_bytes_(max_bytes) {}

    int create();
    void free(int slot);
    int copy(int slot, std::size_t length);
    void trim(int slot, std::size_t length);
    std::size_t length(int slot) const { return at(slot).length; }
    std::vector<int> all() const;

    // Makes room for the tokens that follow; those that are there stay, and pages that others share are copied. All or
    // nothing: OutOfMemory if the slots together would need too much.
    struct Growth {
        int slot;
        std::size_t count;
    };
    void reserve(const std::vector<Growth>&);
    void advance(int slot, std::size_t count) { at(slot).length += count; }

    // The pages of a slot, from position 0 on; of those that `reserve` made room for, too.
    std::vector<std::uint8_t*> pages(int slot) const { return at(slot).data(); }

    // Memory for sources of these lengths, to be filled and then given to slots, whose copies share it. All or nothing,
    // as with `reserve`.
    std::vector<std::shared_ptr<const Memory>> make_sources(const std::vector<std::size_t>& lengths);
    void set_source(int slot, std::shared_ptr<const Memory> source) { at(slot).source = std::move(source); }
    const Memory* source(int slot) const { return at(slot).source.get(); }

    const PageLayout& layout() const { return layout_; }
    const PageLayout& source_layout() const { return source_layout_; }
    std::size_t bytes() const { return bytes_; }
    std::size_t max_bytes() const { return max_bytes_; }

private:
    struct Slot : Memory {
        std::shared_ptr<const Memory> source;
    };
    Slot& at(int slot);
    const Slot& at(int slot) const { return const_cast<Slots*>(this)->at(slot); }
    int add(Slot);
    void require_memory(std::size_t pages, const PageLayout&) const;

    PageLayout layout_, source_layout_;
    std::size_t max_bytes_, bytes_ = 0;
    int next_ = 0;
    std::map<int, Slot> slots_;
};

}  // namespace woqfx::runtime
