#include "encode_kernel.h"

namespace woqfx::encode {

const RowKernels portable_rows{nearest_rows, error_rows};

}  // namespace woqfx::encode
