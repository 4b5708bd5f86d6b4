#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "api.h"
#include "openmp.h"

namespace woqfx {
namespace {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int kSpins = 2000;  // then a worker sleeps

// Workers enter a job through a gate, a number that is open or not and counts those inside. The caller works too; when
// nothing is left it closes the gate and waits for those inside only: a worker that the system let sleep delays no one.
class Pool {
public:
    explicit Pool(int threads) {
        for (int i = 1; i < threads; ++i) std::thread([this] { work(); }).detach();
    }

    void run(std::size_t count, int threads, FunctionRef<void(std::size_t)> item) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (!mine.owns_lock()) {
            for (std::size_t i = 0; i < count; ++i) item(i);
            return;
        }
        item_ = &item, count_ = count, error_ = nullptr;
        next_.store(0, std::memory_order_relaxed);
        most_.store(static_cast<std::uint32_t>(threads - 1), std::memory_order_relaxed);
        gate_.store(kOpen, std::memory_order_release);
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
        take();
        gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
        for (int spins = 0; gate_.load(std::memory_order_acquire) != 0; ++spins)
            spins < kSpins ? relax() : std::this_thread::yield();
        if (error_) std::rethrow_exception(error_);
    }

private:
    static constexpr std::uint32_t kOpen = 1u << 31;

    void work() {
        std::uint32_t seen = 0;
        for (;;) {
            for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) relax();
            epoch_.wait(seen, std::memory_order_acquire);
            seen = epoch_.load(std::memory_order_acquire);
            std::uint32_t gate = gate_.load(std::memory_order_relaxed);
            while ((gate & kOpen) && (gate & ~kOpen) < most_.load(std::memory_order_relaxed))
                if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire)) {
                    take();
                    gate_.fetch_sub(1, std::memory_order_release);
                    break;
                }
        }
    }

    void take() {
        try {
            for (std::size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*item_)(i);
        } catch (...) {
            next_.store(count_, std::memory_order_relaxed);
            const std::lock_guard<std::mutex> lock(error_mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    std::mutex busy_, error_mutex_;
    const FunctionRef<void(std::size_t)>* item_ = nullptr;
    std::size_t count_ = 0;
    std::exception_ptr error_;
    std::atomic<std::uint32_t> most_{0};
    alignas(64) std::atomic<std::size_t> next_{0};
    alignas(64) std::atomic<std::uint32_t> gate_{0};
    alignas(64) std::atomic<std::uint32_t> epoch_{0};
};

// Never destroyed: at exit its threads sleep. A child of fork() has none of them and makes a pool of its own.
std::atomic<Pool*> shared{nullptr};

Pool& pool() {
    if (Pool* made = shared.load(std::memory_order_acquire)) return *made;
    static std::atomic_flag watched;
    if (!watched.test_and_set()) pthread_atfork(nullptr, nullptr, [] { shared.store(nullptr); });
    Pool* fresh = new Pool(max_threads());
    Pool* none = nullptr;
    if (!shared.compare_exchange_strong(none, fresh)) return *none;  // two at once: the loser's threads only sleep
    return *fresh;
}

// Items for the threads of a team that is not ours, or for the caller alone.
class Loop {
public:
    Loop(std::size_t count, FunctionRef<void(std::size_t)> item) : count_(count), item_(item) {}

    void run(Team team, int threads) {
        if (team)
            team([](void* loop) { static_cast<Loop*>(loop)->take(); }, this, static_cast<unsigned>(threads), 0);
        else
            take();
        if (error_) std::rethrow_exception(error_);
    }

private:
    void take() {
        try {
            for (std::size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) item_(i);
        } catch (...) {
            next_.store(count_, std::memory_order_relaxed);
            const std::lock_guard<std::mutex> lock(error_mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    const std::size_t count_;
    const FunctionRef<void(std::size_t)> item_;
    std::atomic<std::size_t> next_{0};
    std::mutex error_mutex_;
    std::exception_ptr error_;
};

int count_threads() {
    if (const char* text = std::getenv("WOQFX_NUM_THREADS")) {
        int threads = 0;
        const char* end = text + std::strlen(text);
        const auto [rest, error] = std::from_chars(text, end, threads);
        if (error != std::errc{} || rest != end || threads < 1 || threads > 1024)
            throw Error(std::string("WOQFX_NUM_THREADS is '") + text + "': give a number of threads, 1 to 1024");
        return threads;
    }
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), openmp_processors());
#endif
    const unsigned cpus = std::thread::hardware_concurrency();
    return cpus ? static_cast<int>(cpus) : 1;
}

}  // namespace

int max_threads() {
    static const int threads = count_threads();
    return threads;
}

void parallel_for(std::size_t count, int threads, FunctionRef<void(std::size_t)> item) {
    const int most = max_threads();
    if (threads < 1 || threads > most) threads = most;
    if (threads == 1 || count <= 1) {
        for (std::size_t i = 0; i < count; ++i) item(i);
        return;
    }
    const Team team = openmp_team();
    if (!team) return pool().run(count, threads, item);
    static std::mutex busy;
    const std::unique_lock<std::mutex> mine(busy, std::try_to_lock);
    Loop(count, item).run(mine.owns_lock() ? team : nullptr, threads);
}

}  // namespace woqfx
