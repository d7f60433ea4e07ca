// Boxes and how two of them overlap: IoU, GIoU and the gradient of GIoU.
#include <algorithm>
#include <cmath>
#include <limits>

#if defined(DETR_FAST_COMMON_BOX_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_COMMON_BOX_INL_H
#undef DETR_FAST_COMMON_BOX_INL_H
#else
#define DETR_FAST_COMMON_BOX_INL_H
#endif

#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
struct Interval {
  T low, high;

  T size() const { return high - low; }
};

// The length that two intervals share, negative where there is a gap between them.
template <typename T>
DETR_FAST_INLINE T overlap(const Interval<T>& a, const Interval<T>& b) {
  return std::min(a.high, b.high) - std::max(a.low, b.low);
}

// The length of the smallest interval around two.
template <typename T>
DETR_FAST_INLINE T hull(const Interval<T>& a, const Interval<T>& b) {
  return std::max(a.high, b.high) - std::min(a.low, b.low);
}

template <typename T>
DETR_FAST_INLINE T positive_part(T x) {
  return x < 0 ? 0 : x;
}

template <typename T>
struct Box {
  Interval<T> x, y;

  T area() const { return x.size() * y.size(); }
};

// One axis (0 or 1) of a box (cx, cy, width, height), in units of 1 / scale.
template <typename T, typename S>
DETR_FAST_INLINE Interval<T> interval_of(const S* box, int axis, T scale) {
  const T centre = box[axis], size = box[axis + 2];
  return {(centre - size / 2) * scale, (centre + size / 2) * scale};
}

template <typename T, typename S>
DETR_FAST_INLINE Box<T> box_of(const S* box, T scale) {
  return {interval_of(box, 0, scale), interval_of(box, 1, scale)};
}

// The least area that boxes are taken to have, given eps; none where eps is 0.
template <typename T>
DETR_FAST_INLINE T least_area(double eps) {
  return eps > 0 ? static_cast<T>(eps) : -std::numeric_limits<T>::infinity();
}

// The areas of two boxes' intersection, union and hull, the last two no less than `least`.
template <typename T>
struct BoxOverlap {
  T intersection, union_area, hull_area;
  bool clamped_union, clamped_hull;

  DETR_FAST_INLINE BoxOverlap(const Box<T>& a, T area_a, const Box<T>& b, T area_b, T least)
      : intersection(positive_part(overlap(a.x, b.x)) * positive_part(overlap(a.y, b.y))),
        union_area(area_a + area_b - intersection),
        hull_area(hull(a.x, b.x) * hull(a.y, b.y)),
        clamped_union(union_area < least),
        clamped_hull(hull_area < least) {
    union_area = clamped_union ? least : union_area;
    hull_area = clamped_hull ? least : hull_area;
  }

  DETR_FAST_INLINE T iou() const { return ratio(intersection, union_area); }
  DETR_FAST_INLINE T giou() const { return iou() - ratio(hull_area - union_area, hull_area); }

  // 0 where the divisor is 0, by a division that vector code can do for all.
  static DETR_FAST_INLINE T ratio(T dividend, T divisor) {
    return divisor == 0 ? T(0) : dividend / (divisor == 0 ? T(1) : divisor);
  }
};

// The gradient of GIoU with respect to the corners of `a`: low x, low y, high x, high y. Where ends of the two boxes
// are equal it is halved, and an area of NaN is a constant where there is an eps, as in PyTorch.
class GiouGradient {
 public:
  GiouGradient(const Box<double>& a, const Box<double>& b, const BoxOverlap<double>& o, double eps) {
    const double u = o.union_area, h = o.hull_area;
    const bool constant_union = eps > 0 && (o.clamped_union || std::isnan(u));
    const bool constant_hull = eps > 0 && (o.clamped_hull || std::isnan(h));
    by_union_ = constant_union ? 0 : (u == 0 ? 0 : -o.intersection / (u * u)) + (h == 0 ? 0 : 1 / h);
    by_hull_ = constant_hull || h == 0 ? 0 : -u / (h * h);
    by_intersection_ = (u == 0 ? 0 : 1 / u) - by_union_;  // which the union decreases with
    x = along(a.x, b.x, a.y, b.y);
    y = along(a.y, b.y, a.x, b.x);
  }

  Interval<double> x, y;  // the derivatives for the two ends of each axis

 private:
  Interval<double> along(const Interval<double>& a, const Interval<double>& b, const Interval<double>& other_a,
                         const Interval<double>& other_b) const {
    const double by_overlap = overlap(a, b) >= 0 ? by_intersection_ * positive_part(overlap(other_a, other_b)) : 0;
    const double by_hull = by_hull_ * hull(other_a, other_b), by_own = by_union_ * other_a.size();
    return {-by_overlap * step(a.low - b.low) - by_hull * step(b.low - a.low) - by_own,
            by_overlap * step(b.high - a.high) + by_hull * step(a.high - b.high) + by_own};
  }

  static double step(double x) { return x > 0 ? 1 : x == 0 ? 0.5 : 0; }

  double by_intersection_, by_union_, by_hull_;  // the derivatives of GIoU for the three areas
};

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif
