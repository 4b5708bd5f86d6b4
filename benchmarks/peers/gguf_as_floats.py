"""A GGUF file's blocks as F32, by gguf's own dequantizer: `gguf_as_floats.py MODEL.gguf OUT.gguf`.

Everything else in the file stays as it is. llama.cpp rounds no inputs where weights are F32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf


def main(model: str, out: str) -> None:
    """Copy the metadata, and every tensor as floats."""
    reader = gguf.GGUFReader(Path(model))
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(Path(out), architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
