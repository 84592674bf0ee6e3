// What the decoder asks of an instruction set. Each set fills one table of functions; `pick` chooses at run time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace openafm {

constexpr size_t kRows = 16;       // rows of a tile: those that share a look-up table
constexpr size_t kGroup = 32;      // columns that share an activation's scale
constexpr size_t kPagePositions = 16;  // tokens of a page of the KV cache
constexpr size_t kMaxPanel = 16;   // most rows of activations that one pass over a tile serves

enum class Kind : int { lut4, lut2, int8, f16, bf16, f32 };

// A weight matrix in tiles of 16 rows, the columns of each padded to a multiple of kGroup with zeros.
// lut4, lut2, int8: 64 bytes hold, for 4 columns at a time, 16 rows of 4 bytes (codes of further columns in the higher
// bits), so that one register meets four broadcast activations. f16, bf16, f32: 16 values a column.
struct Tiles {
  Kind kind;
  size_t rows, columns, padded, tile_bytes;
  const uint8_t* data;
  const int8_t* tables;  // lut: 16 a tile; value = table * scale
  const float* scales;   // 16 a tile, one a row
  const float* exact;    // lut: 16 a tile, the table as it is in the package

  size_t tiles() const { return (rows + kRows - 1) / kRows; }
};

// Activations in n rows of int8: values [padded / 4][n][4], one scale for every kGroup columns [groups][n], and the
// sums of the values of each group, negated and times 128 [groups][n], for kernels whose weights are unsigned.
// A token has `planes` rows that stand for their sum: one, or a second with what the first one's rounding lost.
struct Panel {
  int8_t* values;
  float* scales;
  int32_t* sums;
  int n, planes;

  int tokens() const { return n / planes; }
};

struct Kernels {
  const char* name;
  int panel;  // rows of activations that one pass serves best
  // out[i * stride + row] for the tile's 16 rows and the panel's
  void (*integer)(const Tiles& weight, size_t tile, const Panel& panel, float* out, size_t stride);
  // the same in float: out = (add ? out : 0) + scale * weight x; x is n rows of `columns` floats, x_stride apart
  void (*real)(const Tiles& weight, size_t tile, const float* x, size_t x_stride, int n, float scale, bool add,
               float* out, size_t stride);
  void (*quantize)(const float* x, size_t stride, size_t columns, size_t padded, const Panel& panel);
  void (*rms_norm)(const float* x, const float* gain, size_t width, float eps, float* out);
  void (*swiglu)(float* gate, const float* up, size_t width);
  // One page: `queries` [n][width] scaled, key [width][16] and value [16][width] in f32; the first valid[i] positions
  // count for query i. Running maximum, sum and output of the softmax [n], [n], [n][width] are brought forward.
  void (*attend)(const float* queries, int n, const int* valid, const float* key, const float* value, size_t width,
                 float* maximum, float* total, float* out);
  void (*from_halves)(const uint16_t* halves, size_t n, float* out);  // n is a multiple of 16, here and below
  void (*to_halves)(const float* x, size_t n, uint16_t* out);
  // One head's vector in int8, for the KV cache: x = scale * out, the scale is returned.
  float (*to_bytes)(const float* x, size_t n, int8_t* out);
  // One page of them back: key [width][16] and value [16][width], their scales [16] each; out holds both in f32.
  void (*from_bytes)(const int8_t* key, const int8_t* value, const float* key_scales, const float* value_scales,
                     size_t width, float* out);
  // sum of exp((x - shift) * scale); the terms go to `out` unless it is null
  double (*sum_exp)(const float* x, size_t n, float scale, float shift, float* out);
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();     // null where it was not compiled in, here and below
const Kernels* avxvnni_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512vbmi_kernels();
const Kernels* neon_kernels();

}  // namespace openafm
