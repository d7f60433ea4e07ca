// One problem, from its costs to SciPy's answer.
template <typename T>
Status solve_rows(const Rows<T>& cost, const Assignment& out, Arena& arena) {
  if (sums_fit(cost)) {
    FastPath<T> path(cost, out, arena);
    if (path.solve(out) == Status::kSolved && Certificate<T>(path, cost, arena).holds()) return Status::kSolved;
  }
  return SciPyOrder<T>(cost, out, arena).solve();
}

template Status solve_rows(const Rows<float>&, const Assignment&, Arena&);
template Status solve_rows(const Rows<double>&, const Assignment&, Arena&);
