// Working memory of CPU kernels: floats on a cache line's boundary.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace voxelpool {

class AlignedFloats {
 public:
  AlignedFloats() = default;
  // Uninitialised.
  explicit AlignedFloats(int64_t count) : data_(allocate(count)), count_(count) {}

  // Makes room for `count`; where it grows, what was there is lost and all are zero.
  void grow(int64_t count) {
    if (count <= count_) return;
    data_.reset(allocate(count));
    std::fill_n(data_.get(), count, 0.0f);
    count_ = count;
  }
  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static float* allocate(int64_t count) {
    return static_cast<float*>(::operator new[](count * sizeof(float), kAlignment));
  }
  struct Delete {
    void operator()(float* data) const { ::operator delete[](data, kAlignment); }
  };
  std::unique_ptr<float[], Delete> data_;
  int64_t count_ = 0;
};

}  // namespace voxelpool
