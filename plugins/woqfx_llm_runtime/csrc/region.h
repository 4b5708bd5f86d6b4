// A program that several threads run together, phase by phase, within one parallel call.
//
// Each thread runs the same program. A phase is a number of items, of which each thread has a stretch: neighbours lie
// side by side in memory, and are read as one stream. Whoever is done with its own takes from the others' stretches, and
// all go on when the last item is done. Nobody waits for a thread that comes late or not at all: it finds the phases behind it taken
// and passes them. So a phase costs a few exchanges of a cache line, where a parallel call of its own costs microseconds.
//
// What a program does between phases may therefore read what phases write only if its results are used in items alone
// (whoever has an item of a phase keeps all others from passing it), and memory that is read so must not move. How many
// phases there are must not depend on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>

#include "pool.h"

namespace woqfx::runtime {

class Region;

// One thread's place in the program.
class Thread {
public:
    Thread(Region& region, std::size_t number) : region_(region), number_(number) {}

    // Calls item(i) for each i below `count`, shared out to the threads; returns when all are done. In any order, but a
    // thread that takes neighbours takes them from the first to the last.
    void each(std::size_t count, FunctionRef<void(std::size_t)> item);
    // The same for a count that depends on earlier phases: one thread counts, and what else it does there is done before
    // any item.
    void each_of(FunctionRef<void(std::size_t&)> count, FunctionRef<void(std::size_t)> item);

    // Calls work() in one of the threads; returns when it is done.
    template <class F>
    void once(F&& work) {
        each(1, [&](std::size_t) { work(); });
    }

    int threads() const;

private:
    Region& region_;
    std::size_t number_, phase_ = 0;
};

class Region {
public:
    // Runs `program` in up to `threads` threads (below 1: all of the pool), which pass at most `phases` phases. Rethrows
    // the first exception of an item; the other threads then stop at their next phase.
    void run(int threads, std::size_t phases, FunctionRef<void(Thread&)> program);

private:
    friend class Thread;
    static constexpr std::uint32_t kNotCounted = 0xffffffff, kCounting = 0xfffffffe;
    struct alignas(64) Phase {
        std::atomic<std::uint32_t> total{kNotCounted}, done{0};
    };
    // The items that were taken of each thread's stretch.
    struct alignas(64) Taken {
        std::atomic<std::uint32_t> count{0};
    };
    void fail(std::exception_ptr);

    std::unique_ptr<Phase[]> phases_;
    std::unique_ptr<Taken[]> taken_;  // [phases, threads]
    std::size_t capacity_ = 0, count_ = 0;
    int threads_ = 1;
    std::atomic<bool> failed_{false};
    std::mutex mutex_;
    std::exception_ptr error_;
};

inline int Thread::threads() const { return region_.threads_; }

}  // namespace woqfx::runtime
