// The schemas of all operators, in one place. Implementations register themselves beside their code
// (TORCH_LIBRARY_IMPL in *_cpu.cpp and *_cuda.cu); fake kernels and autograd formulas in projects/occforge/ops.
#include <torch/library.h>

TORCH_LIBRARY(occforge, m) {
}
