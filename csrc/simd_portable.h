// A vector as a small array; the compiler makes of it what the machine has (SSE2, NEON).
template <typename T>
struct Pack {
  static constexpr int64_t kWidth = 16 / sizeof(T);
  T x[kWidth];

  static Pack fill(T value) {
    Pack r;
    for (int64_t k = 0; k < kWidth; ++k) r.x[k] = value;
    return r;
  }
  static Pack count() {  // 0, 1, 2, ...
    Pack r;
    for (int64_t k = 0; k < kWidth; ++k) r.x[k] = static_cast<T>(k);
    return r;
  }
  template <typename S>
  static Pack load(const S* p) {
    Pack r;
    for (int64_t k = 0; k < kWidth; ++k) r.x[k] = static_cast<T>(p[k]);
    return r;
  }
  template <typename S>
  static Pack load_part(const S* p, int64_t n) {  // the first n, then +inf
    Pack r;
    for (int64_t k = 0; k < kWidth; ++k) r.x[k] = k < n ? static_cast<T>(p[k]) : static_cast<T>(kInfinity);
    return r;
  }
  void store(T* p) const {
    for (int64_t k = 0; k < kWidth; ++k) p[k] = x[k];
  }
  T lowest() const {
    T r = x[0];
    for (int64_t k = 1; k < kWidth; ++k) r = x[k] < r ? x[k] : r;
    return r;
  }
  T highest() const {
    T r = x[0];
    for (int64_t k = 1; k < kWidth; ++k) r = x[k] > r ? x[k] : r;
    return r;
  }
};

template <typename T>
Pack<T> operator+(Pack<T> a, Pack<T> b) {
  for (int64_t k = 0; k < a.kWidth; ++k) a.x[k] += b.x[k];
  return a;
}
template <typename T>
Pack<T> operator-(Pack<T> a, Pack<T> b) {
  for (int64_t k = 0; k < a.kWidth; ++k) a.x[k] -= b.x[k];
  return a;
}
// Where one is NaN: the second.
template <typename T>
Pack<T> lesser(Pack<T> a, Pack<T> b) {
  for (int64_t k = 0; k < a.kWidth; ++k) a.x[k] = a.x[k] < b.x[k] ? a.x[k] : b.x[k];
  return a;
}
template <typename T>
Pack<T> greater(Pack<T> a, Pack<T> b) {
  for (int64_t k = 0; k < a.kWidth; ++k) a.x[k] = a.x[k] > b.x[k] ? a.x[k] : b.x[k];
  return a;
}
// One bit a lane.
template <typename T>
uint32_t equal(Pack<T> a, Pack<T> b) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < a.kWidth; ++k) bits |= static_cast<uint32_t>(a.x[k] == b.x[k]) << k;
  return bits;
}
template <typename T>
uint32_t less(Pack<T> a, Pack<T> b) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < a.kWidth; ++k) bits |= static_cast<uint32_t>(a.x[k] < b.x[k]) << k;
  return bits;
}
template <typename T>
uint32_t any_nan(Pack<T> a, Pack<T> b) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < a.kWidth; ++k) bits |= static_cast<uint32_t>(a.x[k] != a.x[k] || b.x[k] != b.x[k]) << k;
  return bits;
}
template <typename T>
Pack<T> where_equal(Pack<T> a, Pack<T> b, Pack<T> yes, Pack<T> no) {
  for (int64_t k = 0; k < a.kWidth; ++k) no.x[k] = a.x[k] == b.x[k] ? yes.x[k] : no.x[k];
  return no;
}
template <typename T>
Pack<T> where_less(Pack<T> a, Pack<T> b, Pack<T> yes, Pack<T> no) {
  for (int64_t k = 0; k < a.kWidth; ++k) no.x[k] = a.x[k] < b.x[k] ? yes.x[k] : no.x[k];
  return no;
}

// Transposes a tile: out[k * pitch + j] = in[j * stride + k] for j < kTile, k < lanes; +inf for rows of `in` from
// `rows` on.
constexpr int64_t kTile = 8;

template <typename T>
void transpose_tile(const T* in, std::ptrdiff_t stride, int64_t rows, int64_t lanes, T* out, std::ptrdiff_t pitch) {
  for (int64_t j = 0; j < kTile; ++j) {
    for (int64_t k = 0; k < lanes; ++k) {
      out[k * pitch + j] = j < rows ? in[j * stride + k] : static_cast<T>(kInfinity);
    }
  }
}
