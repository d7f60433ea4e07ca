#include "fuzz/reference.h"

#include <cmath>
#include <limits>
#include <utility>

namespace detr_fast {

Status solve_reference(const std::vector<double>& cost, int64_t rows, int64_t cols,
                       std::vector<int64_t>* column_of_row) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double value : cost) {
    if (std::isnan(value) || value == -kInfinity) return Status::kInvalid;
  }
  std::vector<double> u(rows, 0.0), v(cols, 0.0);
  std::vector<int64_t> row_of_column(cols, kNone);
  column_of_row->assign(rows, kNone);
  for (int64_t start = 0; start < rows; ++start) {
    std::vector<double> distance(cols, kInfinity);
    std::vector<int64_t> parent(cols, kNone), open, visited_rows, closed;
    for (int64_t j = cols - 1; j >= 0; --j) open.push_back(j);
    int64_t row = start, sink = kNone;
    double reached = 0.0;
    while (sink == kNone) {
      visited_rows.push_back(row);
      double nearest = kInfinity;
      size_t best = 0;
      for (size_t k = 0; k < open.size(); ++k) {
        const int64_t j = open[k];
        const double through = reached + cost[row * cols + j] - u[row] - v[j];
        if (through < distance[j]) {
          distance[j] = through;
          parent[j] = row;
        }
        if (distance[j] < nearest || (distance[j] == nearest && row_of_column[j] == kNone)) {
          nearest = distance[j];
          best = k;
        }
      }
      if (nearest == kInfinity) return Status::kInfeasible;
      reached = nearest;
      const int64_t col = open[best];
      open[best] = open.back();
      open.pop_back();
      closed.push_back(col);
      row = row_of_column[col];
      if (row == kNone) sink = col;
    }
    for (const int64_t i : visited_rows) {
      u[i] += i == start ? reached : reached - distance[(*column_of_row)[i]];
    }
    for (const int64_t j : closed) v[j] -= reached - distance[j];
    for (int64_t col = sink, i = kNone; i != start;) {
      i = parent[col];
      row_of_column[col] = i;
      std::swap((*column_of_row)[i], col);
    }
  }
  return Status::kSolved;
}

}  // namespace detr_fast
