// Fresh memory is mapped at its first touch, 4 KiB at a time: for a gradient of 60 MB that takes
// five times as long as writing it. Huge pages (2 MiB) take that away.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace voxelpool {

// Asks for huge pages under memory that is about to be written whole. A hint: it cannot fail.
inline void expect_write(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kPage = 4096, kHuge = int64_t{2} << 20;
  if (bytes < 2 * kHuge) return;
  const int64_t address = reinterpret_cast<int64_t>(memory);
  const int64_t begin = (address + kPage - 1) / kPage * kPage;
  const int64_t end = (address + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(memory);
  static_cast<void>(bytes);
#endif
}

}  // namespace voxelpool
