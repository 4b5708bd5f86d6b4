// What the environment asks for, and cannot have.
#pragma once

#include "api.h"

namespace woqfx {

// An environment variable holds what cannot be followed. In Python `woqfx.errors.SettingError`: no plugin's fault.
struct SettingError : Error {
    using Error::Error;
};

}  // namespace woqfx
