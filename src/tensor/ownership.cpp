#include "tensor/ownership.hpp"

#include <algorithm>
#include <numeric>

namespace flanmoe {

void Ownership::begin_bucket(std::int64_t elements) {
  const auto ranks = std::int64_t(owned_.size());
  total_ += elements;
  bucket_ = elements;
  before_ = 0;
  std::transform(owned_.begin(), owned_.end(), lacking_.begin(),
                 [&](std::int64_t owned) { return std::max(std::int64_t{0}, total_ - ranks * owned); });
  all_lacking_ = std::accumulate(lacking_.begin(), lacking_.end(), std::int64_t{0});
  rank_ = 0;
  lacking_so_far_ = lacking_[0];
}

int Ownership::next(std::int64_t size) {
  // Parts of the bucket are to the bucket as what ranks lack to what all lack: multiplied by the denominators, so that
  // all numbers are whole.
  using Wide = unsigned __int128;
  const auto wide = [](std::int64_t x) { return static_cast<Wide>(x); };
  const Wide point = wide(before_) + wide(size) * wide(before_) / wide(bucket_);
  while (rank_ + 1 < owned_.size() && wide(lacking_so_far_) * wide(bucket_) <= point * wide(all_lacking_)) {
    lacking_so_far_ += lacking_[++rank_];
  }
  before_ += size;
  owned_[rank_] += size;
  return int(rank_);
}

}  // namespace flanmoe
