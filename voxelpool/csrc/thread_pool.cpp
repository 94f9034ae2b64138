#include "thread_pool.h"

#include <pthread.h>

#if defined(__linux__) && !defined(VOXELPOOL_SANITIZE)
#include <dlfcn.h>
#define VP_OPENMP_OF_TORCH
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace voxelpool {
namespace {

thread_local bool inside_task = false;

// The tasks of one call, taken one by one by whoever comes.
class Tasks {
 public:
  Tasks(int64_t count, const std::function<void(int64_t)>& task) : count_(count), task_(task) {}

  void work() {
    inside_task = true;
    for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
      try {
        task_(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
    inside_task = false;
  }

  // Once all who worked are done.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int64_t count_;
  const std::function<void(int64_t)>& task_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::exception_ptr error_;
};

class Pool {
 public:
  // False where another call holds the pool.
  bool run(Tasks& tasks, int helpers) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy) return false;
    while (static_cast<int>(workers_.size()) < helpers) {
      const int rank = static_cast<int>(workers_.size());
      workers_.emplace_back([this, rank] { work(rank); });
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_ = &tasks;
      helpers_ = helpers;
      pending_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    tasks.work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    tasks_ = nullptr;
    return true;
  }

 private:
  void work(int rank) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (rank >= helpers_) continue;
      Tasks* const tasks = tasks_;
      lock.unlock();
      tasks->work();
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Tasks* tasks_ = nullptr;
  int helpers_ = 0;
  int pending_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: its threads wait until the process ends. A forked child, which has none of the
// parent's threads, starts with a new pool, and without the OpenMP that torch may have used before.
Pool* pool = new Pool;
bool forked = false;

void after_fork() {
  pool = new Pool;
  forked = true;
}

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, after_fork);

#if defined(VP_OPENMP_OF_TORCH)
// As <omp.h>'s implementations export it: runs function(data) on a team of `threads`.
using Team = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// OpenMP as the torch in this process has it, or null. Its threads spin for a while when they have
// worked, on the cores that threads of our own would need.
Team team_of_torch() {
  static const Team found = [] {
    void* const torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch ? reinterpret_cast<Team>(dlsym(torch, "GOMP_parallel")) : nullptr;
  }();
  return found;
}
#endif

bool run_in_parallel(Tasks& tasks, int64_t count, int threads) {
#if defined(VP_OPENMP_OF_TORCH)
  const Team team = team_of_torch();
  if (team && !forked) {
    // All threads are asked for even if tasks are fewer: a smaller team would end the others.
    team([](void* tasks) { static_cast<Tasks*>(tasks)->work(); }, &tasks,
         static_cast<unsigned>(threads), 0);
    return true;
  }
#endif
  return pool->run(tasks, static_cast<int>(std::min<int64_t>(threads, count)) - 1);
}

}  // namespace

void run_tasks(int64_t count, int threads, const std::function<void(int64_t)>& task) {
  if (count > 1 && threads > 1 && !inside_task) {
    Tasks tasks(count, task);
    if (run_in_parallel(tasks, count, threads)) return tasks.rethrow();
  }
  for (int64_t i = 0; i < count; ++i) task(i);
}

void parallel_for(int64_t n, int64_t grain, int threads,
                  const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 0) return;
  const int64_t most = (n + grain - 1) / grain;
  const int64_t pieces = std::min<int64_t>(most, threads <= 1 ? 1 : int64_t{threads} * 4);
  run_tasks(pieces, threads, [&](int64_t i) { body(n * i / pieces, n * (i + 1) / pieces); });
}

}  // namespace voxelpool
