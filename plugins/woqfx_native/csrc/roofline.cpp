// Runs the loops of roofline_loops.h on several threads at once, and times them together.
#include "roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "roofline_loops.h"

namespace woqfx {
namespace {

using Clock = std::chrono::steady_clock;
using roofline::Loops;

const Loops& loops_of(Isa isa) {
    if (!supported(isa)) throw Error(std::string("this CPU does not have ") + name(isa));
    switch (isa) {
#if defined(WOQFX_X86)
        case Isa::avx2: return roofline::avx2_loops();
        case Isa::avx_vnni: return roofline::avx_vnni_loops();
        case Isa::avx512: return roofline::avx512_loops();
        case Isa::avx512_vnni: return roofline::avx512_vnni_loops();
        case Isa::avx512_bf16: return roofline::avx512_bf16_loops();
        case Isa::amx: return roofline::amx_loops();
#endif
        default: return roofline::portable_loops();
    }
}

double seconds_between(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
}

// Seconds from when the first of `threads` threads begins work(i) to when the last ends. They begin together.
template <class Work>
double seconds_together(int threads, const Work& work) {
    std::vector<Clock::time_point> begin(threads), end(threads);
    std::atomic<int> waiting{threads};
    const auto part = [&](int i) {
        for (--waiting; waiting.load() > 0;) std::this_thread::yield();
        begin[i] = Clock::now();
        work(i);
        end[i] = Clock::now();
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(part, i);
    part(0);
    for (std::thread& other : others) other.join();
    return seconds_between(*std::min_element(begin.begin(), begin.end()), *std::max_element(end.begin(), end.end()));
}

// Where results go, so that no compiler can tell that nobody needs them.
std::atomic<std::uint64_t> unread;

}  // namespace

double read_seconds(const std::uint8_t* data, std::size_t size, Isa isa, int threads) {
    const Loops& loops = loops_of(isa);
    threads = std::max(threads, 1);
    const std::size_t part = size / threads;
    return seconds_together(threads, [&](int i) { unread += loops.sum(data + i * part, part); });
}

double peak_operations(Compute compute, Isa isa, int threads) {
    const roofline::Loop& loop = loops_of(isa).of[static_cast<std::size_t>(compute)];
    threads = std::max(threads, 1);
    constexpr std::size_t kSteps = 1 << 19;  // milliseconds, whatever the instruction set
    const double seconds =
        seconds_together(threads, [&](int) { unread += static_cast<std::uint64_t>(loop.run(kSteps)); });
    return kSteps * loop.operations * threads / seconds;
}

}  // namespace woqfx
