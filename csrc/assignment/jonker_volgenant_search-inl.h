// How a FastPath goes on: bids, then shortest paths, until every row has a column.
template <typename T>
void FastPath<T>::bid_for_waiting() {
  int64_t bids = kBids * n_, still_waiting = 0;
  for (int64_t w = 0; w < num_waiting_ && !too_many_ties(); ++w) {
    int64_t row = waiting_[w];
    while (row != kNone && bids > 0) {
      --bids;
      const int64_t outbid = bid(row);
      if (outbid == row) break;
      row = outbid;
    }
    if (row != kNone) waiting_[still_waiting++] = row;
  }
  num_waiting_ = still_waiting;
}

template <typename T>
int64_t FastPath<T>::bid(int64_t row) {
  const double free = cheapest_free(row);
  const TwoNearest best = two_nearest(costs(row), price_, num_places_);
  if (free <= best.first) {
    if (free == kInfinity) return row;
    row_dual_[row] = free;
    hold(row, take_cheapest_free(row));
    return kNone;
  }
  const double next = free < best.second ? free : best.second;
  num_ties_ += next == best.first;
  const int64_t holder = row_of_held_[best.place];
  if (next == kInfinity || (next == best.first && holder != kNone)) return row;
  if (holder == kNone && !square_) {  // columns that are free or newly held have price 0
    row_dual_[row] = best.first;
  } else {
    row_dual_[row] = next;
    price_[best.place] = static_cast<double>(costs(row)[best.place]) - next;
  }
  if (holder != kNone) held_[holder] = kNone;
  hold(row, best.place);
  return holder;
}

template <typename T>
bool FastPath<T>::augment(int64_t start) {
  row_dual_[start] = 0;
  int64_t row = start, visits = 0, place = kNone, free_visit = kNone;
  double reached = 0, price = 0, nearest_free = kInfinity;
  while (row != kNone) {
    const double offset = reached - row_dual_[row], free = cheapest_free(row) + offset;
    tree_[visits] = {row, reached, offset, price};
    free_visit = free < nearest_free ? visits : free_visit;
    nearest_free = free < nearest_free ? free : nearest_free;
    const double nearest = visits++ ? relax<false>(costs(row), price_, offset, distance_, num_places_)
                                    : relax<true>(costs(row), price_, offset, distance_, num_places_);
    if (!(nearest < nearest_free)) {
      place = kNone;
      reached = nearest_free;
      break;
    }
    place = find_first(distance_, num_places_, nearest);
    reached = nearest;
    price = price_[place];
    row = row_of_held_[place];
    if (row != kNone) {  // no path shall lead there any more
      distance_[place] = kInfinity;
      price_[place] = -kInfinity;
    }
  }
  update_duals(visits, reached);
  if (reached == kInfinity) return false;

  int64_t visit = free_visit;
  if (place == kNone) {
    place = take_cheapest_free(tree_[visit].row);
  } else {
    visit = find_parent(visits, place, reached, price);
  }
  while (true) {  // hands the columns along the path on, from its end
    const int64_t holder = tree_[visit].row, given_up = held_[holder];
    hold(holder, place);
    if (holder == start) return true;
    place = given_up;
    visit = find_parent(visit, place, tree_[visit].reached, tree_[visit].price);
  }
}

template <typename T>
int64_t FastPath<T>::find_parent(int64_t end, int64_t place, double distance, double price) const {
  int64_t visit = 0;
  while (visit + 1 < end &&
         (static_cast<double>(costs(tree_[visit].row)[place]) - price) + tree_[visit].offset != distance) {
    ++visit;
  }
  return visit;
}

template <typename T>
void FastPath<T>::update_duals(int64_t visits, double length) {
  for (int64_t v = 0; v < visits; ++v) {
    const Visit& visit = tree_[v];
    const double growth = length == kInfinity ? 0 : length - visit.reached;
    row_dual_[visit.row] += growth;
    if (v > 0) price_[held_[visit.row]] = visit.price - growth;
  }
}
