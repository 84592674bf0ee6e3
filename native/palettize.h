// One-dimensional k-means by dynamic programming: what openafm.compression.palettize does in numpy, byte for byte.
//
// Both compute in double precision, in the same order and without fused operations, and choose the first of equals: a
// model compressed where there is a compiler is the same file as one compressed where there is none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace openafm {

// Means (ascending but for rounding) of the k runs that the sorted values are best cut into. `values` and `weights` are
// [n], weights positive; `candidates` is the number of cut positions that the programme chooses among, `rounds` how
// often Lloyd's step may follow.
void best_means(const float* values, const double* weights, size_t n, size_t k, size_t candidates, size_t rounds,
                double* means);

// The number of `edges` (ascending) that are at most each value: its place in the table whose middles they are.
void nearest(const float* values, size_t n, const double* edges, size_t count, uint8_t* found);

}  // namespace openafm
