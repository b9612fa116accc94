#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "voxel/confusion_check.h"

namespace occforge {
namespace {

constexpr int64_t kBlock = 2048;
constexpr int kTables = 8;

// The bins of up to kBlock cells. One plain function a pair of dtypes, so that each is compiled for wide vectors too.
template <typename pred_t, typename target_t>
OCC_HD void fill_bins(const void* pred, const void* target, const bool* mask, int64_t begin, int64_t count,
                      int32_t classes, int32_t* bins) {
  const pred_t* p = static_cast<const pred_t*>(pred) + begin;
  const target_t* t = static_cast<const target_t*>(target) + begin;
  if (mask == nullptr) {
    for (int64_t i = 0; i < count; ++i) bins[i] = confusion_bin(p[i], t[i], true, classes);
  } else {
    // as bytes: two comparisons and a bitwise and, which vectorise, where a bool would branch
    const uint8_t* m = reinterpret_cast<const uint8_t*>(mask) + begin;
    for (int64_t i = 0; i < count; ++i) bins[i] = confusion_bin(p[i], t[i], m[i] != 0, classes);
  }
}

#define OCC_FILL(name, pred_t, target_t)                                                                     \
  OCC_CLONES void name(const void* pred, const void* target, const bool* mask, int64_t begin, int64_t count, \
                       int32_t classes, int32_t* bins) {                                                     \
    fill_bins<pred_t, target_t>(pred, target, mask, begin, count, classes, bins);                            \
  }
OCC_FILL(fill_byte_byte, uint8_t, uint8_t)
OCC_FILL(fill_byte_long, uint8_t, int64_t)
OCC_FILL(fill_long_byte, int64_t, uint8_t)
OCC_FILL(fill_long_long, int64_t, int64_t)
#undef OCC_FILL

at::Tensor confusion_matrix_cpu(const at::Tensor& pred_, const at::Tensor& target_, int64_t num_classes,
                                const std::optional<at::Tensor>& mask_) {
  check_confusion(pred_, target_, mask_, num_classes);
  const at::Tensor pred = pred_.contiguous(), target = target_.contiguous();
  const at::Tensor mask = mask_.has_value() ? mask_->contiguous() : at::Tensor();
  const bool* selected = mask.defined() ? mask.const_data_ptr<bool>() : nullptr;
  const bool pred_is_byte = pred.scalar_type() == at::kByte, target_is_byte = target.scalar_type() == at::kByte;
  const auto fill = pred_is_byte ? (target_is_byte ? fill_byte_byte : fill_byte_long)
                                 : (target_is_byte ? fill_long_byte : fill_long_long);
  const int32_t classes = static_cast<int32_t>(num_classes);
  const int64_t bins = num_classes * num_classes + 2, total = target.numel();
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), total / (4 * kBlock)));
  std::vector<int64_t> sums(parts * bins, 0);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      // Most cells are free: eight tables, taken in turn, so that an addition need not wait for the one before it.
      std::vector<uint32_t> tables(kTables * bins, 0);
      int64_t* sum = sums.data() + part * bins;
      int32_t bin[kBlock];
      const int64_t end = total * (part + 1) / parts;
      int64_t since = 0;
      const auto flush = [&] {
        for (int lane = 0; lane < kTables; ++lane) {
          const uint32_t* table = tables.data() + lane * bins;
          for (int64_t i = 0; i < bins; ++i) sum[i] += table[i];
        }
        std::fill(tables.begin(), tables.end(), 0u);
        since = 0;
      };
      for (int64_t begin = total * part / parts; begin < end; begin += kBlock) {
        const int64_t count = std::min(kBlock, end - begin);
        fill(pred.const_data_ptr(), target.const_data_ptr(), selected, begin, count, classes, bin);
        uint32_t* table = tables.data();
        int64_t i = 0;
        for (; i + kTables <= count; i += kTables) {
          for (int lane = 0; lane < kTables; ++lane) ++table[lane * bins + bin[i + lane]];
        }
        for (; i < count; ++i) ++table[bin[i]];
        since += count;
        if (since > (int64_t{1} << 31)) flush();
      }
      flush();
    }
  });
  at::Tensor matrix = at::zeros({num_classes, num_classes}, target.options().dtype(at::kLong));
  auto* out = matrix.data_ptr<int64_t>();
  int64_t wrong = 0;
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t i = 0; i < num_classes * num_classes; ++i) out[i] += sums[part * bins + i];
    wrong += sums[part * bins + bins - 1];
  }
  check_predictions(wrong, num_classes);
  return matrix;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) { m.impl("confusion_matrix", &confusion_matrix_cpu); }

}  // namespace occforge
