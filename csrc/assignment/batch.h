// All the assignment problems of a training step.
#pragma once

#include <cstdint>
#include <vector>

#include "assignment/matrix.h"
#include "assignment/solver.h"
#include "common/checkpoint.h"

namespace detr_fast {

template <typename T>
struct AssignmentBatch {
  // [layers, targets, queries of all groups]: the cost of each target and the queries of its own image.
  const T* cost;
  std::ptrdiff_t layer_stride, target_stride, query_stride;
  int64_t layers, groups, queries;  // queries of one group
  std::vector<int64_t> sizes;       // targets of each image
  int64_t targets;                  // their sum

  int64_t* query;       // out, [layers, groups, targets]: counted over all groups; kNone where unassigned
  double* target_dual;  // out, [layers, groups, targets], or null
  double* query_dual;   // out, [layers, images, queries of all groups], or null

  int64_t images() const { return static_cast<int64_t>(sizes.size()); }

  // Solves every problem, with at most `num_threads` threads. The calling thread calls poll() every so often; an
  // exception from there ends the work.
  void solve(int num_threads, const Checkpoint::Callback& poll);

  // The problems that have no solution, in the order of layers, groups and images.
  struct Failure {
    Status status;
    int64_t layer, image;
    int64_t target;  // of the image: the first one at fault, kNone where no single target is
  };
  std::vector<Failure> failures;

 private:
  struct Problem {
    int64_t layer, group, image, first_target;
    MatrixView<T> cost;  // [queries, targets], in SciPy's orientation
  };

  Problem problem(int64_t number, const std::vector<int64_t>& first_target) const;
  Status solve(const Problem& problem, Checkpoint& checkpoint) const;
  static int64_t find_faulty_target(const MatrixView<T>& cost, Status status);
};

}  // namespace detr_fast
