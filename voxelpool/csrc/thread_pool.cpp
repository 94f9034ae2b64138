#include "thread_pool.h"

#include <pthread.h>

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

class Pool {
 public:
  // False where another call holds the pool.
  bool run(int64_t count, int threads, const std::function<void(int64_t)>& task) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy) return false;
    const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
    while (static_cast<int>(workers_.size()) < helpers) {
      const int rank = static_cast<int>(workers_.size());
      workers_.emplace_back([this, rank] { work(rank); });
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      count_ = count;
      next_.store(0);
      error_ = nullptr;
      helpers_ = helpers;
      pending_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    drain();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
    task_ = nullptr;
    if (error_) std::rethrow_exception(error_);
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
      lock.unlock();
      drain();
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  void drain() {
    inside_task = true;
    for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
      try {
        (*task_)(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
    inside_task = false;
  }

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int64_t)>* task_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  std::exception_ptr error_;
  int helpers_ = 0;
  int pending_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: its threads wait until the process ends. A forked child, which has none of the
// parent's threads, starts with a new pool.
Pool* pool = nullptr;

void renew_pool() { pool = new Pool; }

Pool& shared_pool() {
  static const bool once = [] {
    renew_pool();
    pthread_atfork(nullptr, nullptr, renew_pool);
    return true;
  }();
  static_cast<void>(once);
  return *pool;
}

}  // namespace

void run_tasks(int64_t count, int threads, const std::function<void(int64_t)>& task) {
  if (count > 1 && threads > 1 && !inside_task && shared_pool().run(count, threads, task)) return;
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
