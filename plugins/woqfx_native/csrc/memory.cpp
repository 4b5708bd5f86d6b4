#include "memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace woqfx {
namespace {

constexpr std::size_t kChunk = 8 * kHugePage, kLargestShared = kChunk / 4, kAlignment = 64;

std::shared_ptr<std::uint8_t> allocate(std::size_t size, std::size_t alignment) {
    if (size > SIZE_MAX - alignment) throw std::bad_alloc();
    const std::size_t whole = (size + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, whole);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    if (alignment == kHugePage) madvise(memory, size, MADV_HUGEPAGE);
#endif
    return {static_cast<std::uint8_t*>(memory), std::free};
}

struct Chunk {
    std::shared_ptr<std::uint8_t> memory;
    std::size_t used = 0;

    std::shared_ptr<std::uint8_t> take(std::size_t size) {
        size = (size + kAlignment - 1) / kAlignment * kAlignment;
        if (!memory || size > kChunk - used) memory = allocate(kChunk, kHugePage), used = 0;
        used += size;
        return {memory, memory.get() + used - size};
    }
};

}  // namespace

std::shared_ptr<std::uint8_t> weight_memory(std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    return allocate(size, kAlignment);  // each weight ends where its buffer does
#else
    if (size > kLargestShared) return allocate(size, kHugePage);
    thread_local Chunk chunk;
    return chunk.take(size);
#endif
}

}  // namespace woqfx
