// The OpenMP runtime of this process, if it has one already: torch brings one.
//
// Its threads wait for their next work by spinning, for a millisecond or so, on cores that threads of our own would need:
// in a forward of transformers, where torch's operations and ours alternate, our products took 1.6 times as long. So where
// there is such a team we work with it, and its threads are warm when we call. Nothing is linked: a second runtime would be
// as bad as a second pool.
#pragma once

namespace woqfx {

// Calls work(data) in each of `threads` threads, the caller among them. GCC's libgomp, and LLVM's and Intel's in its place,
// export it under the name GOMP_parallel.
using Team = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// Null where there is none, and in a child of fork(), which has none of the team's threads.
Team openmp_team();

// How many CPUs it found when it was loaded; 0 where there is none. With OMP_PROC_BIND it then bound the thread that loaded it
// to one of them, which is all that the system says of that thread from there on.
int openmp_processors();

}  // namespace woqfx
