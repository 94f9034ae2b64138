// What compilers call differently. VP_X86: there are x86 vectors, of which a function may ask for
// more than the build does. Included by .cpp files alone.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define VP_X86
#endif

#if defined(__GNUC__) || defined(__clang__)
// Into functions that know what instructions there are.
#define VP_INLINE __attribute__((always_inline)) inline
#define VP_INLINE_LAMBDA __attribute__((always_inline))
#define VP_UNROLL _Pragma("GCC unroll 16")
#else
#define VP_INLINE inline
#define VP_INLINE_LAMBDA
#define VP_UNROLL
#endif
