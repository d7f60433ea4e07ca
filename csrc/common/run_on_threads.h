// Runs one function on several threads.
#pragma once

#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace detr_fast {

// Calls work() on up to `num_threads` threads at once, one of which is the calling thread, and returns when all calls
// have returned. Where the system has no more threads there are fewer calls, so that work() should take its tasks from
// a counter that all calls share. Rethrows the first exception.
template <typename Work>
void run_on_threads(int num_threads, const Work& work) {
  std::mutex mutex;
  std::exception_ptr error;
  const auto run = [&] {
    try {
      work();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  try {
    for (int k = 1; k < num_threads; ++k) threads.emplace_back(run);
  } catch (const std::system_error&) {  // the threads that exist do the work
  }
  run();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace detr_fast
