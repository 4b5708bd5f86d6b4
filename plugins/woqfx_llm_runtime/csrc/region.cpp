#include "region.h"

#include <thread>

#include "api.h"

namespace woqfx::runtime {
namespace {

struct Stopped {};  // leaves the program of a thread, because another's item failed

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int kSpins = 4000;  // then whoever holds the last item may need this CPU

inline void rest(int spins) { spins < kSpins ? relax() : std::this_thread::yield(); }

}  // namespace

void Region::fail(std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::move(error);
    failed_.store(true, std::memory_order_release);
}

void Thread::each(std::size_t count, FunctionRef<void(std::size_t)> item) {
    each_of([count](std::size_t& total) { total = count; }, item);
}

void Thread::each_of(FunctionRef<void(std::size_t&)> count, FunctionRef<void(std::size_t)> item) {
    if (phase_ == region_.count_) {
        region_.fail(std::make_exception_ptr(Error("the engine has more phases than it counted")));
        throw Stopped{};
    }
    const auto threads = static_cast<std::size_t>(region_.threads_);
    Region::Taken* const taken = region_.taken_.get() + phase_ * threads;
    Region::Phase& phase = region_.phases_[phase_++];
    std::uint32_t total = Region::kNotCounted;
    if (phase.total.compare_exchange_strong(total, Region::kCounting, std::memory_order_acquire)) {
        std::size_t counted = 0;
        try {
            count(counted);
        } catch (...) {
            region_.fail(std::current_exception());
            counted = 0;
        }
        total = static_cast<std::uint32_t>(counted);
        phase.total.store(total, std::memory_order_release);
    }
    for (int spins = 0; total == Region::kCounting; total = phase.total.load(std::memory_order_acquire)) rest(spins++);
    std::uint32_t finished = 0;
    for (std::size_t turn = 0; turn < threads; ++turn) {
        const std::size_t whose = (number_ + turn) % threads;
        const std::size_t begin = total * whose / threads, end = total * (whose + 1) / threads;
        for (std::size_t i; (i = begin + taken[whose].count.fetch_add(1, std::memory_order_relaxed)) < end; ++finished) {
            if (region_.failed_.load(std::memory_order_relaxed)) continue;
            try {
                item(i);
            } catch (...) {
                region_.fail(std::current_exception());
            }
        }
    }
    if (finished) phase.done.fetch_add(finished, std::memory_order_release);
    for (int spins = 0; phase.done.load(std::memory_order_acquire) < total; ++spins) rest(spins);
    if (region_.failed_.load(std::memory_order_acquire)) throw Stopped{};
}

void Region::run(int threads, std::size_t phases, FunctionRef<void(Thread&)> program) {
    const int most = max_threads();
    count_ = phases, threads_ = threads < 1 || threads > most ? most : threads;
    const std::size_t stretches = phases * static_cast<std::size_t>(threads_);
    if (stretches > capacity_) {
        phases_ = std::make_unique<Phase[]>(stretches), taken_ = std::make_unique<Taken[]>(stretches);
        capacity_ = stretches;
    }
    for (std::size_t i = 0; i < phases; ++i) {
        phases_[i].total.store(kNotCounted, std::memory_order_relaxed);
        phases_[i].done.store(0, std::memory_order_relaxed);
    }
    for (std::size_t i = 0; i < stretches; ++i) taken_[i].count.store(0, std::memory_order_relaxed);
    failed_.store(false), error_ = nullptr;
    parallel_for(static_cast<std::size_t>(threads_), threads_, [&](std::size_t number) {
        try {
            Thread thread(*this, number);
            program(thread);
        } catch (const Stopped&) {
        } catch (...) {
            fail(std::current_exception());
        }
    });
    if (error_) std::rethrow_exception(error_);
}

}  // namespace woqfx::runtime
