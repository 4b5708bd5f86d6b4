// Threads: those of torch's OpenMP team where there is one (openmp.h), else a pool of our own.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

namespace woqfx {

// A reference to something callable, for the time of a call: no allocation.
template <class Signature>
class FunctionRef;

template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
public:
    template <class F, std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>, int> = 0>
    FunctionRef(F&& f)
        : object_(const_cast<void*>(static_cast<const void*>(&f))),
          call_([](void* object, Args... args) -> Result {
              return (*static_cast<std::remove_reference_t<F>*>(object))(args...);
          }) {}
    Result operator()(Args... args) const { return call_(object_, args...); }

private:
    void* object_;
    Result (*call_)(void*, Args...);
};

// Calls item(i) for each i below `count`, in any order, by up to `threads` threads, the caller among them. Returns
// when all are done; rethrows the first exception. From several threads at once: one has the pool, others run alone.
void parallel_for(std::size_t count, int threads, FunctionRef<void(std::size_t)> item);

}  // namespace woqfx
