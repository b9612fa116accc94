// Shared by all operators: host/device qualifiers, wide-vector clones of CPU loops, argument checks.
#pragma once

#include <cstdint>

// Arithmetic that is written once and compiled for the CPU and for CUDA.
#if defined(__CUDACC__)
#define OCC_HD __host__ __device__ __forceinline__
#else
#define OCC_HD inline __attribute__((always_inline))
#endif

// A hot CPU loop compiled twice, for x86-64 machines with AVX2 + FMA and for any other; the loader picks one. It goes
// on plain functions (neither templates nor inline) whose helpers are OCC_HD, so that they are inlined into both
// copies. Sanitizers cannot run the loader's resolver, clang spells the attribute otherwise: both get the one baseline
// copy.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(OCCFORGE_NO_CLONES)
#define OCC_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define OCC_CLONES
#endif

// Before a short loop of constant length over an array: unrolled, so that the array lives in registers.
#if defined(__CUDA_ARCH__) || defined(__clang__)
#define OCC_UNROLL _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__CUDACC__)
#define OCC_UNROLL _Pragma("GCC unroll 16")
#else
#define OCC_UNROLL
#endif
