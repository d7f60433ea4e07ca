// Distributes many small tasks over threads, where threads save time.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "common/checkpoint.h"

namespace detr_fast {

template <typename Work>
class ParallelFor {
 public:
  ParallelFor(int64_t count, int num_threads, const Checkpoint::Callback& poll, const Work& work)
      : count_(count), num_threads_(num_threads), poll_(poll), work_(work) {}

  void run() {
    run_first_thread();
    wait_for_threads();
    for (std::thread& thread : threads_) thread.join();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kBeforeThreads{40};  // of work by the calling thread alone
  static constexpr std::chrono::microseconds kPerThread{60};      // of work, to be worth another thread
  static constexpr std::chrono::milliseconds kBetweenPolls{50};   // while the calling thread waits for others
  static constexpr int64_t kChunk = 4;                            // tasks that a thread takes at once

  struct Stopped {};

  void run_first_thread() {
    const Clock::time_point start = Clock::now();
    bool decided = num_threads_ < 2;
    Checkpoint checkpoint(poll_);
    run_tasks(checkpoint, [&] {
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
        threads_.emplace_back([this] { run_other_thread(); });
      } catch (const std::system_error&) {  // the system has no more threads; the existing ones do the work
        return;
      }
    }
  }

  void run_other_thread() {
    Checkpoint checkpoint([this] {
      if (stopped_.load(std::memory_order_relaxed)) throw Stopped();
    });
    run_tasks(checkpoint, [] {});
    const std::lock_guard<std::mutex> lock(mutex_);
    ++num_finished_;
    finished_.notify_one();
  }

  void wait_for_threads() {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto all_finished = [this] { return num_finished_ == threads_.size(); };
    while (!error_ && !finished_.wait_for(lock, kBetweenPolls, all_finished)) {
      lock.unlock();
      stop_on_error(poll_);
      lock.lock();
    }
  }

  template <typename AfterChunk>
  void run_tasks(Checkpoint& checkpoint, AfterChunk after_chunk) {
    stop_on_error([&] {
      for (int64_t begin; (begin = next_.fetch_add(kChunk, std::memory_order_relaxed)) < count_; after_chunk()) {
        const int64_t end = begin + kChunk < count_ ? begin + kChunk : count_;
        for (int64_t task = begin; task < end; ++task) work_(task, checkpoint);
      }
    });
  }

  // Keeps the first exception, and has every thread stop.
  template <typename Function>
  void stop_on_error(const Function& function) {
    try {
      function();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stopped_.store(true, std::memory_order_relaxed);
      next_.store(count_, std::memory_order_relaxed);
    }
  }

  const int64_t count_;
  const int num_threads_;
  const Checkpoint::Callback& poll_;
  const Work& work_;
  std::atomic<int64_t> next_{0};
  std::vector<std::thread> threads_;
  std::atomic<bool> stopped_{false};
  std::condition_variable finished_;
  std::mutex mutex_;  // of what follows
  std::exception_ptr error_;
  size_t num_finished_ = 0;
};

// Calls work(task, checkpoint) for each task below `count`, from up to `num_threads` threads. The calling thread calls
// poll() every so often, at a checkpoint or while it waits; an exception from there, or from a task, ends the work of
// all threads and is thrown. The calling thread starts others
// only when the time of the first tasks predicts that they save time, and joins them before it returns, so that no
// thread exists when the process forks between calls.
template <typename Work>
void parallel_for(int64_t count, int num_threads, const Checkpoint::Callback& poll, const Work& work) {
  ParallelFor<Work>(count, num_threads, poll, work).run();
}

}  // namespace detr_fast
