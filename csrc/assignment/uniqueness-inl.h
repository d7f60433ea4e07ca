// Whether the answer of a FastPath is the only one that SciPy could give.
//
// Let s = cost - u - v be the slack of each pair. Any other assignment differs from this one by cycles that alternate
// between pairs of one and of the other, and by paths of the same kind from a column that is given up to a free one.
// It costs more by the slack of its own pairs and by -v of the columns it gives up. If every such cycle and path has
// a term above `tolerance`, the other assignment costs at least about that much more. SciPy's duals, like any that are
// found by shortest augmenting paths of n rows in double precision, are feasible and tight within (4n + 7) e, where e
// bounds one rounding error, so that its answer is within 2n (4n + 7) e of the optimum. Above that it is this answer.
//
// As a graph: an arc from row to row where the first's pair with the other's column is within the tolerance, one from
// a row to the node "free" where its cheapest free column is, one from there to each row whose column has a price
// within the tolerance of 0. The answer is the only one if the graph has no cycle.
template <typename T>
class Certificate {
 public:
  Certificate(FastPath<T>& path, const Rows<T>& cost, Arena& arena)
      : path_(path), cost_(cost), n_(cost.rows), max_arcs_(8 * n_ + 64) {
    arcs_ = static_cast<int64_t*>(arena.take(max_arcs_, sizeof(int64_t)));
    first_arc_ = static_cast<int64_t*>(arena.take(n_ + 2, sizeof(int64_t)));
    next_arc_ = static_cast<int64_t*>(arena.take(n_ + 1, sizeof(int64_t)));
    stack_ = static_cast<int64_t*>(arena.take(n_ + 1, sizeof(int64_t)));
  }

  bool holds() {
    // Every number that enters a shortest path is below 16 times this.
    const double scale = magnitude();
    if (!(scale < 1e290)) return false;
    const auto n = static_cast<double>(n_);
    const double unit = 0x1p-53 * scale;
    allowance_ = 16 * (4 * n + 8) * unit;
    tolerance_ = 64 * n * (4 * n + 16) * unit;
    return find_arcs() && (num_arcs_ == 0 || !has_cycle());
  }

 private:
  // Bounds costs and duals that matter. A direct way out exists from each row to one of any n columns, so that no
  // path is longer than the greatest cost of those held; unless it is forbidden, then n - 1 detours bound it.
  double magnitude() const {
    double scale = absolute(path_.lowest_);
    const bool forbidden = path_.highest_ == kInfinity;
    scale = maximum(scale, forbidden ? greatest_finite() * static_cast<double>(n_) : absolute(path_.highest_));
    for (int64_t i = 0; i < n_; ++i) {
      scale = maximum(scale, maximum(absolute(path_.row_dual_[i]), absolute(path_.price_[path_.held_[i]])));
    }
    return scale;
  }

  double greatest_finite() const {
    double greatest = 0;
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t j = 0; j < cost_.cols; ++j) {
        const double value = absolute(static_cast<double>(cost_.data[i * cost_.stride + j]));
        if (value < kInfinity) greatest = maximum(greatest, value);
      }
    }
    return greatest;
  }

  // False where the duals are not feasible and tight, or there are more arcs than a useful graph has.
  bool find_arcs() {
    for (int64_t i = 0; i < n_; ++i) {
      first_arc_[i] = num_arcs_;
      if (!find_arcs_between_rows(i)) return false;
      const double slack = path_.cheapest_free(i) - path_.row_dual_[i];
      if (slack < -allowance_) return false;
      if (slack <= tolerance_) {
        if (!add_arc(n_)) return false;
        free_is_near_ = true;
      }
    }
    first_arc_[n_] = num_arcs_;
    for (int64_t i = 0; free_is_near_ && i < n_; ++i) {
      const double price = path_.price_[path_.held_[i]];
      if (price > 0 || (price >= -tolerance_ && !add_arc(i))) return false;
    }
    first_arc_[n_ + 1] = num_arcs_;
    return true;
  }

  bool find_arcs_between_rows(int64_t row) {
    constexpr int64_t kWidth = Pack<double>::kWidth;
    constexpr uint32_t kAll = (1u << kWidth) - 1;
    const T* costs = path_.costs(row);
    const int64_t own = path_.held_[row];
    const Pack<double> dual = Pack<double>::fill(path_.row_dual_[row]), tolerance = Pack<double>::fill(tolerance_);
    Pack<double> low = Pack<double>::fill(kInfinity);
    for (int64_t k = 0; k < path_.num_places_; k += kWidth) {
      const Pack<double> slack = (Pack<double>::load(costs + k) - Pack<double>::load(path_.price_ + k)) - dual;
      low = lesser(slack, low);
      for (uint32_t near = ~less(tolerance, slack) & kAll; near; near &= near - 1) {
        const int64_t place = k + __builtin_ctz(near);
        const int64_t holder = path_.row_of_held_[place];
        free_is_near_ |= holder == kNone;
        if (place != own && !add_arc(holder == kNone ? n_ : holder)) return false;
      }
    }
    const double own_slack = (static_cast<double>(costs[own]) - path_.price_[own]) - path_.row_dual_[row];
    return own_slack <= allowance_ && low.lowest() >= -allowance_;
  }

  bool add_arc(int64_t to) {
    if (num_arcs_ == max_arcs_) return false;
    arcs_[num_arcs_++] = to;
    return true;
  }

  // Depth first; next_arc_ is kUnseen before a node is entered, and past its last arc when it is done with.
  bool has_cycle() {
    constexpr int64_t kUnseen = -1, kDone = -2;
    for (int64_t i = 0; i <= n_; ++i) next_arc_[i] = kUnseen;
    for (int64_t root = 0; root <= n_; ++root) {
      if (next_arc_[root] != kUnseen) continue;
      int64_t depth = 0;
      stack_[0] = root;
      next_arc_[root] = first_arc_[root];
      while (depth >= 0) {
        const int64_t node = stack_[depth];
        if (next_arc_[node] == first_arc_[node + 1]) {
          next_arc_[node] = kDone;
          --depth;
          continue;
        }
        const int64_t to = arcs_[next_arc_[node]++];
        if (next_arc_[to] >= 0) return true;
        if (next_arc_[to] == kDone) continue;
        next_arc_[to] = first_arc_[to];
        stack_[++depth] = to;
      }
    }
    return false;
  }

  static double absolute(double x) { return x < 0 ? -x : x; }
  static double maximum(double a, double b) { return a < b ? b : a; }

  FastPath<T>& path_;
  const Rows<T> cost_;
  const int64_t n_, max_arcs_;
  int64_t* arcs_;       // where each leads, those of one node after those of the one before; node n is "free"
  int64_t* first_arc_;  // [n + 2]
  int64_t* next_arc_;   // [n + 1]
  int64_t* stack_;      // [n + 1]
  int64_t num_arcs_ = 0;
  bool free_is_near_ = false;
  double tolerance_ = 0, allowance_ = 0;
};
