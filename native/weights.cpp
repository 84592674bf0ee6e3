#include "weights.h"

#include <cmath>
#include <cstring>

namespace openafm {
namespace {

// Bytes that one tile takes, and how many columns 64 of them hold.
size_t tile_bytes(Kind kind, size_t columns, size_t padded) {
  switch (kind) {
    case Kind::lut4: return padded * kRows / 2;
    case Kind::lut2: return padded * kRows / 4;
    case Kind::int8: return padded * kRows;
    case Kind::f16:
    case Kind::bf16: return round_up(columns * kRows * 2, 64);
    case Kind::f32: return columns * kRows * 4;
  }
  __builtin_unreachable();
}

// std::nearbyintf of what is small, without a call.
inline float nearest(float x) { return x + 12582912.0f - 12582912.0f; }

// The scale that rounds a table's values to int8 with the least squared error, each value counted as often as it is
// used. Tried are those that make the largest value a code from 127 down to 64, so tables that were made on such a grid
// (openafm.compression.feedback) come out as they are.
float best_scale(const float* table, const uint32_t* counts) {  // of 16, unused ones with a count of 0
  float largest = 0.0f, shares[16];
  for (size_t i = 0; i < 16; i++) largest = std::fmax(largest, std::fabs(table[i]));
  for (size_t i = 0; i < 16; i++) shares[i] = static_cast<float>(counts[i]);
  if (largest == 0.0f) return 0.0f;
  float best = largest / 127.0f, least = INFINITY;
  for (int code = 127; code >= 64; code--) {
    const float scale = largest / static_cast<float>(code);
    float off[16], error = 0.0f;
    for (size_t v = 0; v < 16; v++) off[v] = table[v] - scale * nearest(table[v] / scale);
    for (size_t v = 0; v < 16; v++) off[v] *= off[v] * shares[v];
    for (size_t v = 0; v < 16; v++) error += off[v];
    if (error < least) least = error, best = scale;
  }
  return best;
}

// Codes of 4 columns at 4 bits, as bytes.
inline uint32_t spread4(uint32_t two_bytes) {
  const uint32_t apart = (two_bytes | two_bytes << 8) & 0x00FF00FFu;
  return (apart | apart << 4) & 0x0F0F0F0Fu;
}

inline uint32_t spread2(uint32_t byte) {  // at 2 bits
  const uint32_t apart = (byte | byte << 12) & 0x000F000Fu;
  return (apart | apart << 6) & 0x03030303u;
}

inline uint32_t spread1(uint32_t nibble) { return (nibble | nibble << 7 | nibble << 14 | nibble << 21) & 0x01010101u; }

// A word of packed codes with those of columns 0 to 3 in its bytes' lowest bits, of 4 to 7 above them, and so on.
template <int bits> inline uint32_t turned(uint32_t x) {
  if constexpr (bits == 4) return spread4(x & 0xFFFF) | spread4(x >> 16) << 4;
  return spread2(x & 255) | spread2(x >> 8 & 255) << 2 | spread2(x >> 16 & 255) << 4 | spread2(x >> 24) << 6;
}

// Codes of columns c to c + 3 of a packed row; beyond its end zeros.
inline uint32_t four_codes(const uint8_t* row, size_t row_bytes, int bits, size_t c) {
  const size_t at = c * bits / 8;
  if (at >= row_bytes) return 0;
  if (bits == 4) return spread4(row[at] | (at + 1 < row_bytes ? row[at + 1] << 8 : 0));
  if (bits == 2) return spread2(row[at]);
  return spread1((row[at] >> (c % 8)) & 15);
}

// Up to 16 rows side by side: out[i][r] = row r's i-th word, of n, for rows `apart` bytes from each other.
template <class Word> void side_by_side(const uint8_t* row, size_t apart, size_t filled, size_t n, uint8_t* out) {
  for (size_t i = 0; i < n; i++) {
    for (size_t r = 0; r < filled; r++) {
      std::memcpy(out + (i * kRows + r) * sizeof(Word), row + r * apart + i * sizeof(Word), sizeof(Word));
    }
  }
}

// The same for n words of packed codes, turned on the way.
template <int bits> void turned_side_by_side(const uint8_t* row, size_t apart, size_t filled, size_t n, uint8_t* out) {
  constexpr size_t kStretch = 256;  // words of each row at once: 16 kB, which stay in the first cache
  uint32_t words[kRows][kStretch] = {};
  for (size_t start = 0; start < n; start += kStretch) {
    const size_t count = start + kStretch < n ? kStretch : n - start;
    for (size_t r = 0; r < filled; r++) {
      std::memcpy(words[r], row + r * apart + 4 * start, 4 * count);
      for (uint32_t& word : words[r]) word = turned<bits>(word);  // of all: a loop of a known length becomes vectors
    }
    side_by_side<uint32_t>(reinterpret_cast<uint8_t*>(words), sizeof words[0], filled, count, out + 64 * start);
  }
}

}  // namespace

Matrix::Matrix(Kind kind, size_t rows, size_t columns)
    : tiles_{kind, rows, columns, round_up(columns, kGroup), 0, nullptr, nullptr, nullptr, nullptr} {
  tiles_.tile_bytes = openafm::tile_bytes(kind, columns, tiles_.padded);
  const size_t tiles = tiles_.tiles();
  data_ = Buffer<uint8_t>(tiles * tiles_.tile_bytes);
  const bool looked_up = kind == Kind::lut4 || kind == Kind::lut2;
  if (looked_up) tables_ = Buffer<int8_t>(16 * tiles), exact_ = Buffer<float>(16 * tiles);
  if (looked_up || kind == Kind::int8) scales_ = Buffer<float>(16 * tiles);
  tiles_.data = data_.data();
  tiles_.tables = tables_.data();
  tiles_.scales = scales_.data();
  tiles_.exact = exact_.data();
}

Matrix Matrix::palettized(const uint8_t* packed, const uint16_t* tables, int bits, size_t group, size_t rows,
                          size_t columns) {
  const size_t row_bytes = (columns * bits + 7) / 8;
  if (bits == 8 || group % kRows != 0) {  // no tile of 16 rows with one small table: plain halves hold the same values
    std::vector<uint16_t> values(rows * columns);
    for (size_t r = 0; r < rows; r++) {
      for (size_t c = 0; c < columns; c++) {
        const int code = packed[r * row_bytes + c * bits / 8] >> (c * bits % 8) & ((1 << bits) - 1);
        values[r * columns + c] = tables[(r / group << bits) + code];
      }
    }
    return dense(Kind::f16, values.data(), rows, columns);
  }
  Matrix m(bits == 4 ? Kind::lut4 : Kind::lut2, rows, columns);
  const int stored = bits == 4 ? 4 : 2;
  const size_t per_load = 4 * (8 / stored), k = size_t{1} << bits;
  for (size_t tile = 0; tile < m.tiles_.tiles(); tile++) {
    uint32_t counts[16] = {};
    const uint8_t* row = packed + tile * kRows * row_bytes;
    const size_t filled = rows - tile * kRows < kRows ? rows - tile * kRows : kRows;
    uint8_t* out = m.data_.data() + tile * m.tiles_.tile_bytes;
    const size_t whole = bits == 1 ? 0 : columns / per_load;  // words that are there in full
    if (bits == 4) turned_side_by_side<4>(row, row_bytes, filled, whole, out);
    if (bits == 2) turned_side_by_side<2>(row, row_bytes, filled, whole, out);
    for (size_t c = whole * per_load; c < columns; c += per_load) {
      for (size_t r = 0; r < filled; r++) {
        uint32_t word = 0;
        for (size_t i = 0; i < per_load; i += 4) {
          word |= four_codes(row + r * row_bytes, row_bytes, bits, c + i) << (i / 4 * stored);
        }
        std::memcpy(out + c / per_load * 64 + 4 * r, &word, 4);
      }
    }
    for (size_t c = 0; c < columns; c += 256) {  // a sample is enough to weigh a table's values
      for (size_t r = 0; r < filled; r++) {
        uint32_t word;
        std::memcpy(&word, out + c / per_load * 64 + 4 * r, 4);
        for (int b = 0; b < 32; b += stored) counts[word >> b & ((1u << stored) - 1)]++;
      }
    }
    float exact[16] = {};
    for (size_t i = 0; i < k; i++) exact[i] = from_half(tables[(tile * kRows / group << bits) + i]);
    const float scale = best_scale(exact, counts);
    for (size_t i = 0; i < 16; i++) {  // a small table is stored over and over
      const float value = exact[i % k];
      m.exact_[16 * tile + i] = value;
      m.tables_[16 * tile + i] = static_cast<int8_t>(scale > 0 ? std::nearbyintf(value / scale) : 0);
      m.scales_[16 * tile + i] = scale;
    }
  }
  return m;
}

Matrix Matrix::int8(const int8_t* values, const float* scales, size_t rows, size_t columns) {
  Matrix m(Kind::int8, rows, columns);
  for (size_t row = 0; row < rows; row += kRows) {
    const size_t filled = rows - row < kRows ? rows - row : kRows, rest = columns % 4;
    const uint8_t* from = reinterpret_cast<const uint8_t*>(values) + row * columns;
    uint8_t* out = m.data_.data() + row / kRows * m.tiles_.tile_bytes;
    side_by_side<uint32_t>(from, columns, filled, columns / 4, out);
    for (size_t r = 0; r < filled && rest; r++) {
      std::memcpy(out + columns / 4 * 64 + 4 * r, from + (r + 1) * columns - rest, rest);
    }
  }
  std::memcpy(m.scales_.data(), scales, rows * sizeof(float));
  return m;
}

Matrix Matrix::dense(Kind kind, const void* values, size_t rows, size_t columns) {
  Matrix m(kind, rows, columns);
  const size_t row_bytes = columns * (kind == Kind::f32 ? 4 : 2);
  for (size_t row = 0; row < rows; row += kRows) {
    const size_t filled = rows - row < kRows ? rows - row : kRows;
    const uint8_t* from = static_cast<const uint8_t*>(values) + row * row_bytes;
    uint8_t* out = m.data_.data() + row / kRows * m.tiles_.tile_bytes;
    if (kind == Kind::f32) side_by_side<uint32_t>(from, row_bytes, filled, columns, out);
    else side_by_side<uint16_t>(from, row_bytes, filled, columns, out);
  }
  return m;
}

void Matrix::row(size_t index, float* out) const {
  const Tiles& t = tiles_;
  const size_t tile = index / kRows, r = index % kRows;
  const uint8_t* w = t.data + tile * t.tile_bytes;
  for (size_t c = 0; c < t.columns; c++) {
    const size_t at = c * kRows + r;
    if (t.kind == Kind::f32) {
      std::memcpy(out + c, w + 4 * at, 4);
    } else if (t.kind == Kind::f16 || t.kind == Kind::bf16) {
      uint16_t bits;
      std::memcpy(&bits, w + 2 * at, 2);
      out[c] = t.kind == Kind::f16 ? from_half(bits) : from_bfloat(bits);
    } else if (t.kind == Kind::int8) {
      out[c] = static_cast<int8_t>(w[c / 4 * 64 + 4 * r + c % 4]) * t.scales[16 * tile + r];
    } else {
      const size_t bits = t.kind == Kind::lut4 ? 4 : 2, per_load = 32 / bits;
      const uint8_t byte = w[c / per_load * 64 + 4 * r + c % 4];
      out[c] = t.exact[16 * tile + (byte >> (c % per_load / 4 * bits) & ((1u << bits) - 1))];
    }
  }
}

float from_bfloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

float from_half(uint16_t half) {
  float values[16];
  uint16_t halves[16] = {half};
  portable_kernels()->from_halves(halves, 16, values);
  return values[0];
}

uint16_t to_half(float value) {
  float values[16] = {value};
  uint16_t halves[16];
  portable_kernels()->to_halves(values, 16, halves);
  return halves[0];
}

}  // namespace openafm
