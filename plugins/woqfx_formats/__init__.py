"""Other people's checkpoints: read packed, and written where the grid fits."""

from __future__ import annotations

import woqfx


@woqfx.hookimpl
def woqfx_formats() -> list[woqfx.Format]:
    """Give the formats; imported when asked for, since they need torch."""
    from woqfx_formats.autoround import AutoRound
    from woqfx_formats.awq import AWQ
    from woqfx_formats.bitsandbytes import BitsAndBytes
    from woqfx_formats.compressed_tensors import CompressedTensors
    from woqfx_formats.gguf import GGUF
    from woqfx_formats.gptq import GPTQ
    from woqfx_formats.itrex import ITREX

    return [AutoRound(), AWQ(), BitsAndBytes(), CompressedTensors(), GGUF(), GPTQ(), ITREX()]
