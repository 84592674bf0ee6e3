// Weight matrices in memory: repacked at load from the package's rows into the tiles that the kernels read.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace openafm {

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

template <class T> class Buffer {  // aligned to a cache line, or to a huge page where it holds some; zeroed
 public:
  Buffer() = default;
  explicit Buffer(size_t n) : size_(n) {
    constexpr size_t huge = size_t{1} << 21;
    const size_t bytes = round_up(n * sizeof(T) + 1, 64), alignment = bytes < huge ? 64 : huge;
    data_.reset(static_cast<T*>(std::aligned_alloc(alignment, round_up(bytes, alignment))));
    if (!data_) throw std::bad_alloc();
#ifdef __linux__  // fewer page faults and TLB misses; the rest stays on small pages, so that no memory is lost
    if (bytes >= huge) madvise(data_.get(), bytes / huge * huge, MADV_HUGEPAGE);
#endif
    __builtin_memset(data_.get(), 0, bytes);
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  size_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

class Matrix {
 public:
  // packed: [rows][ceil(columns * bits / 8)]; tables: halves [ceil(rows / group)][2^bits]; bits 1, 2, 4 or 8
  static Matrix palettized(const uint8_t* packed, const uint16_t* tables, int bits, size_t group, size_t rows,
                           size_t columns);
  static Matrix int8(const int8_t* values, const float* scales, size_t rows, size_t columns);  // one scale a row
  static Matrix dense(Kind kind, const void* values, size_t rows, size_t columns);             // f16, bf16, f32

  const Tiles& tiles() const { return tiles_; }
  void row(size_t index, float* out) const;  // the weights of one row
  size_t bytes() const { return data_.size() + tables_.size() + 4 * (scales_.size() + exact_.size()); }

 private:
  Matrix(Kind kind, size_t rows, size_t columns);

  Buffer<uint8_t> data_;
  Buffer<int8_t> tables_;
  Buffer<float> scales_, exact_;
  Tiles tiles_;
};

float from_half(uint16_t half);
float from_bfloat(uint16_t bits);
uint16_t to_half(float value);

}  // namespace openafm
