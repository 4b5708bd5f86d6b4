// Keys and values of sequences, in pages of kPage positions that sequences with a common beginning share.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "api.h"
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
    };
    std::vector<Layer> layers;
    std::size_t bytes = 0;

    void add(KVType, std::size_t heads, std::size_t head_dim);  // the next layer
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

// All sequences. Not for several threads at once.
class Slots {
public:
    Slots(PageLayout layout, std::size_t max_bytes) : layout_(std::move(layout)), max_bytes_(max_bytes) {}

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
    std::vector<std::uint8_t*> pages(int slot) const;

    const PageLayout& layout() const { return layout_; }
    std::size_t bytes() const { return bytes_; }
    std::size_t max_bytes() const { return max_bytes_; }

private:
    struct Slot {
        std::size_t length = 0;
        std::vector<std::shared_ptr<Page>> pages;
    };
    Slot& at(int slot);
    const Slot& at(int slot) const { return const_cast<Slots*>(this)->at(slot); }
    int add(Slot);

    PageLayout layout_;
    std::size_t max_bytes_, bytes_ = 0;
    int next_ = 0;
    std::map<int, Slot> slots_;
};

}  // namespace woqfx::runtime
