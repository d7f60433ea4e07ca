// A copy of the matrix with contiguous rows, each padded with +inf to full packs.
template <typename T>
Rows<T> copy_rows(const MatrixView<T>& cost, Arena& arena) {
  const int64_t pitch = padded(cost.cols);
  auto* copy = static_cast<T*>(arena.take(cost.rows * pitch, sizeof(T)));
  if (cost.row_stride == 1 && cost.col_stride != 1) {
    for (int64_t j = 0; j < cost.cols; j += kTile) {
      for (int64_t i = 0; i < cost.rows; i += kTile) {
        const int64_t lanes = cost.rows - i < kTile ? cost.rows - i : kTile;
        transpose_tile(cost.data + i + j * cost.col_stride, cost.col_stride, cost.cols - j, lanes,
                       copy + i * pitch + j, pitch);
      }
    }
    return {copy, cost.rows, cost.cols, pitch};
  }
  for (int64_t i = 0; i < cost.rows; ++i) {
    const T* row = cost.data + i * cost.row_stride;
    for (int64_t j = 0; j < cost.cols; ++j) copy[i * pitch + j] = row[j * cost.col_stride];
    for (int64_t j = cost.cols; j < pitch; ++j) copy[i * pitch + j] = static_cast<T>(kInfinity);
  }
  return {copy, cost.rows, cost.cols, pitch};
}

// One problem, from its costs to SciPy's answer. The matrix has at most as many rows as columns.
template <typename T>
Status solve_rows(const MatrixView<T>& cost, const Assignment& out, Arena& arena) {
  const bool padding = FastPath<T>::is_wide(cost.rows, cost.cols);
  const bool in_place = cost.col_stride == 1 && !padding;
  const Rows<T> rows = in_place ? Rows<T>{cost.data, cost.rows, cost.cols, cost.row_stride} : copy_rows(cost, arena);
  if (sums_fit(rows)) {
    FastPath<T> path(rows, out, arena);
    if (path.solve(out) && Certificate<T>(path, rows, arena).holds()) return Status::kSolved;
  }
  return SciPyOrder<T>(rows, out, arena).solve();
}

template Status solve_rows(const MatrixView<float>&, const Assignment&, Arena&);
template Status solve_rows(const MatrixView<double>&, const Assignment&, Arena&);
