// Tiles: 16 rows of 64 bytes each; a product of two is added to a third.
#include "roofline_loops.h"

namespace woqfx::roofline {
namespace {

// Four sums, in tiles 0 to 3, keep the unit busy; operands are in 4 and 5. Loading the shapes fills all with zeros.
struct alignas(64) Shape {
    std::uint8_t palette = 1, start = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};

template <bool bf16>
float tiles(std::size_t count) {
    const Shape shape;
    _tile_loadconfig(&shape);
    for (; count; --count) {
        if constexpr (bf16) {
            _tile_dpbf16ps(0, 4, 5);
            _tile_dpbf16ps(1, 4, 5);
            _tile_dpbf16ps(2, 4, 5);
            _tile_dpbf16ps(3, 4, 5);
        } else {
            _tile_dpbusd(0, 4, 5);
            _tile_dpbusd(1, 4, 5);
            _tile_dpbusd(2, 4, 5);
            _tile_dpbusd(3, 4, 5);
        }
    }
    alignas(64) float sum[256];
    _tile_stored(0, sum, 64);
    _tile_release();
    return sum[0];
}

}  // namespace

const Loops& amx_loops() {
    static constexpr Loops with_tiles{
        &sum, {loop<Fp32>, {&tiles<true>, 4 * 2 * 16 * 16 * 32}, {&tiles<false>, 4 * 2 * 16 * 16 * 64}}};
    return with_tiles;
}

}  // namespace woqfx::roofline
