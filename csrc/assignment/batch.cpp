#include "assignment/batch.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/parallel_for.h"

namespace detr_fast {

template <typename T>
void AssignmentBatch<T>::solve(int num_threads, const Checkpoint::Callback& poll) {
  std::vector<int64_t> first_target(sizes.size());
  for (size_t image = 1; image < sizes.size(); ++image) {
    first_target[image] = first_target[image - 1] + sizes[image - 1];
  }
  const int64_t count = layers * groups * images();
  std::vector<Status> statuses(count, Status::kSolved);
  const auto work = [&](int64_t number, Checkpoint& checkpoint) {
    statuses[number] = solve(problem(number, first_target), checkpoint);
  };
  parallel_for(count, num_threads, poll, work);

  for (int64_t number = 0; number < count; ++number) {
    if (statuses[number] == Status::kSolved) continue;
    const Problem failed = problem(number, first_target);
    failures.push_back(
        {statuses[number], failed.layer, failed.image, find_faulty_target(failed.cost, statuses[number])});
  }
}

template <typename T>
typename AssignmentBatch<T>::Problem AssignmentBatch<T>::problem(int64_t number,
                                                                 const std::vector<int64_t>& first_target) const {
  const int64_t image = number % images(), group = number / images() % groups, layer = number / images() / groups;
  const T* data = cost + layer * layer_stride + first_target[image] * target_stride + group * queries * query_stride;
  return {layer, group, image, first_target[image], {data, queries, sizes[image], query_stride, target_stride}};
}

template <typename T>
Status AssignmentBatch<T>::solve(const Problem& problem, Checkpoint& checkpoint) const {
  const int64_t first_query = problem.group * queries, size = problem.cost.cols;
  const int64_t first = (problem.layer * groups + problem.group) * targets + problem.first_target;
  std::fill_n(query + first, size, kNone);
  ThreadSolver thread_solver;
  AssignmentSolver& solver = *thread_solver;
  const Status status = solver.solve(problem.cost, checkpoint, target_dual != nullptr);
  if (status == Status::kSolved) {
    for (int64_t k = 0; k < solver.size(); ++k) {
      if (solver.by_column()) {
        query[first + k] = first_query + solver.partner(k);
      } else {
        query[first + solver.partner(k)] = first_query + k;
      }
    }
  }
  if (target_dual) {
    double* dual_of_queries = query_dual + (problem.layer * images() + problem.image) * groups * queries + first_query;
    if (status == Status::kSolved && solver.size() > 0) {
      std::copy_n(solver.column_dual(), size, target_dual + first);
      std::copy_n(solver.row_dual(), queries, dual_of_queries);
    } else {
      std::fill_n(target_dual + first, size, 0.0);
      std::fill_n(dual_of_queries, queries, 0.0);
    }
  }
  return status;
}

// The first target whose costs contain NaN or -inf; or the first whose costs are all +inf.
template <typename T>
int64_t AssignmentBatch<T>::find_faulty_target(const MatrixView<T>& cost, Status status) {
  constexpr T kForbidden = std::numeric_limits<T>::infinity();
  for (int64_t target = 0; target < cost.cols; ++target) {
    bool invalid = false, forbidden = true;
    for (int64_t q = 0; q < cost.rows; ++q) {
      const T value = cost.data[q * cost.row_stride + target * cost.col_stride];
      invalid |= std::isnan(value) || value == -kForbidden;
      forbidden &= value == kForbidden;
    }
    if (status == Status::kInvalid ? invalid : forbidden) return target;
  }
  return kNone;
}

template struct AssignmentBatch<float>;
template struct AssignmentBatch<double>;

}  // namespace detr_fast
