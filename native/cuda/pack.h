// Canonical weights to the strip layout, on the device.
#pragma once

#include <cuda_runtime.h>

#include "core/status.h"
#include "cuda/strip_layout.h"
#include "ops/packed_matrix.h"

namespace edgeshift::cuda {

// Bytes that pack() writes for a matrix of this shape.
size_t packed_bytes(const CanonicalMatrix& source);

// Repacks `source` (device pointers) into `data` (device, packed_bytes(source), 16-byte aligned) and describes it in `out`.
// gate_up needs n to be a multiple of 16.
// The order of the inputs stays with the caller: invalid_argument when `permutation` is set.
Status pack(const CanonicalMatrix& source, RowOrder order, void* data, PackedMatrix& out, cudaStream_t stream);

// Describes in `out` what pack() left in `data` of a matrix of this shape; of its arrays only whether there are minimums counts.
void describe_packed(const CanonicalMatrix& shape, void* data, PackedMatrix& out);

}  // namespace edgeshift::cuda
