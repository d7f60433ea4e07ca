// Distributes many small tasks over threads, where threads save time.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace detr_fast {

template <typename Work>
class ParallelFor {
 public:
  ParallelFor(int64_t count, int num_threads, const Work& work)
      : count_(count), num_threads_(num_threads), work_(work) {}

  void run() {
    run_first_thread();
    for (std::thread& thread : threads_) thread.join();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kBeforeThreads{40};  // of work by the calling thread alone
  static constexpr std::chrono::microseconds kPerThread{60};      // of work, to be worth another thread
  static constexpr int64_t kChunk = 4;                            // tasks that a thread takes at once

  void run_first_thread() {
    const Clock::time_point start = Clock::now();
    bool decided = num_threads_ < 2;
    run_tasks([&] {
      const auto elapsed = Clock::now() - start;
      if (decided || elapsed < kBeforeThreads) return;
      decided = true;
      const int64_t done = next_.load(std::memory_order_relaxed);
      start_threads(elapsed / done * (count_ - done));
    });
  }

  void start_threads(Clock::duration work_left) {
    const int64_t wanted = work_left / kPerThread;
    for (int64_t k = 0; k < wanted && k + 1 < num_threads_; ++k) {
      try {
        threads_.emplace_back([this] { run_tasks([] {}); });
      } catch (const std::system_error&) {  // the system has no more threads; the existing ones do the work
        return;
      }
    }
  }

  template <typename AfterChunk>
  void run_tasks(AfterChunk after_chunk) {
    try {
      for (int64_t begin; (begin = next_.fetch_add(kChunk, std::memory_order_relaxed)) < count_; after_chunk()) {
        const int64_t end = begin + kChunk < count_ ? begin + kChunk : count_;
        for (int64_t task = begin; task < end; ++task) work_(task);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  const int64_t count_;
  const int num_threads_;
  const Work& work_;
  std::atomic<int64_t> next_{0};
  std::vector<std::thread> threads_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

// Calls work(task) for each task below `count`, from up to `num_threads` threads. The calling thread starts others
// only when the time of the first tasks predicts that they save time, and joins them before it returns, so that no
// thread exists when the process forks between calls.
template <typename Work>
void parallel_for(int64_t count, int num_threads, const Work& work) {
  ParallelFor<Work>(count, num_threads, work).run();
}

}  // namespace detr_fast
