// The threads of all CPU kernels: those of the OpenMP that torch has brought into the process, or,
// where it has none, a pool of std::threads. They survive fork (data loader workers) and never
// decide a result: kernels cut their work so that any number of threads gives the same bits.
#pragma once

#include <cstdint>
#include <functional>

namespace voxelpool {

// Runs task(0), …, task(count - 1), on up to `threads` threads, the caller's among them. Returns
// when all are done; rethrows the first exception. Nested calls run on the caller alone.
void run_tasks(int64_t count, int threads, const std::function<void(int64_t)>& task);

// Runs body(begin, end) over [0, n) cut into pieces of at least `grain`.
void parallel_for(int64_t n, int64_t grain, int threads,
                  const std::function<void(int64_t, int64_t)>& body);

}  // namespace voxelpool
