#include "encode_kernel.h"

namespace woqfx::encode {

const RowKernels avx512_rows{nearest_rows, error_rows};

}  // namespace woqfx::encode
