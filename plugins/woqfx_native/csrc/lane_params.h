// The numbers of one group as a packed weight's record holds them, for loops over single weights.
#pragma once

#include "layout.h"
#include "numbers.h"

namespace {

// What turns a lane's codes of one record into weights: w = (level - zero) * scale + offset.
struct LaneParams {
    float scale, zero = 0;
    float offset = -0.0f;  // which added to -0 leaves it as it is

    LaneParams(const woqfx::Layout& l, const std::uint8_t* record, std::size_t lane)
        : scale(load_float(record, l.scale_type, lane)) {
        if (l.origin == woqfx::Origin::offsets)
            offset = load_float(record + l.origins_at, l.scale_type, lane);
        else if (l.origin == woqfx::Origin::zeros)
            zero = static_cast<float>(record[l.origins_at + lane]);
        else if (!l.level_count)
            zero = static_cast<float>(l.middle());
    }
};

}  // namespace
