// Shares many small tasks among threads, where that pays.
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

// Calls work(task) for each task below `count`, from up to `num_threads` threads. Helpers come only once the time that the first tasks took promises that they pay, and are gone on return:
// nothing is left that a fork could break.
template <typename Work>
class Crew {
 public:
  Crew(int64_t count, int num_threads, const Work& work)
      : count_(count), num_threads_(num_threads), work_(work) {}

  void run() {
    lead();
    for (std::thread& helper : helpers_) helper.join();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kBeforeHelp{40};   // of work by the first thread alone
  static constexpr std::chrono::microseconds kForAHelper{60};   // of work, to be worth a thread
  static constexpr int64_t kAtOnce = 4;

  void lead() {
    const Clock::time_point start = Clock::now();
    bool asked = num_threads_ < 2;
    work_until_done([&] {
      const auto elapsed = Clock::now() - start;
      if (asked || elapsed < kBeforeHelp) return;
      asked = true;
      const int64_t done = next_.load(std::memory_order_relaxed);
      call_helpers(elapsed / done * (count_ - done));
    });
  }

  void call_helpers(Clock::duration work_left) {
    const int64_t wanted = work_left / kForAHelper;
    for (int64_t k = 0; k < wanted && k + 1 < num_threads_; ++k) {
      try {
        helpers_.emplace_back([this] { work_until_done([] {}); });
      } catch (const std::system_error&) {  // no more threads to be had: those there are do it
        return;
      }
    }
  }

  template <typename Pause>
  void work_until_done(Pause pause) {
    try {
      for (int64_t begin; (begin = next_.fetch_add(kAtOnce, std::memory_order_relaxed)) < count_; pause()) {
        const int64_t end = begin + kAtOnce < count_ ? begin + kAtOnce : count_;
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
  std::vector<std::thread> helpers_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace detr_fast
