// Addresses as Python hands them over: plain integers. Included by bindings alone.
#pragma once

#include <cstdint>

namespace voxelpool {

using Pointer = uintptr_t;

template <typename T>
T* at(Pointer pointer) {
  return reinterpret_cast<T*>(pointer);
}

}  // namespace voxelpool
