#include "ops.h"

namespace woqfx::runtime {

HeadLayout HeadLayout::of(KVType type, std::size_t head_dim) {
    HeadLayout l{type, head_dim, (head_dim + kPad - 1) / kPad * kPad, 0, 0, 0};
    const std::size_t size = type == KVType::f32 ? 4 : type == KVType::int8 ? 1 : 2;
    const std::size_t numbers = type == KVType::bf16 ? (head_dim + 1) / 2 * 2 : head_dim;
    l.keys_at = type == KVType::int8 ? 2 * kPage * sizeof(float) : 0;
    l.values_at = l.keys_at + numbers * kPage * size;
    l.bytes = l.values_at + kPage * l.width * size;
    return l;
}

const Ops& ops() {
#if defined(WOQFX_X86)
    switch (best_isa()) {
        case Isa::portable: return portable_ops();
        case Isa::avx2:
        case Isa::avx_vnni: return avx2_ops();
        case Isa::avx512:
        case Isa::avx512_vnni: return avx512_ops();
        case Isa::avx512_bf16:
        case Isa::amx: return avx512_bf16_ops();
    }
    return portable_ops();
#else
    return portable_ops();
#endif
}

}  // namespace woqfx::runtime
