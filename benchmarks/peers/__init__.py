"""Other people's quantizers, each in a virtual environment of its own, to measure woqfx against."""
