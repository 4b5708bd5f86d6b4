"""What this machine's processor can do, for backends to choose kernels by."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class CPU:
    """The processor: its architecture (`x86_64`), its model's name, and the kernel's names of its features."""

    machine: str
    model: str
    features: frozenset[str]

    def has(self, *features: str) -> bool:
        """Whether it has all of these (`avx2`, `avx512f`, `avx512_vnni`, `amx_int8`)."""
        return self.features.issuperset(features)


@cache
def this_cpu() -> CPU:
    """The processor that we run on. Features are those that the operating system has enabled (Linux)."""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    features = frozenset((fields.get("flags") or fields.get("Features") or "").split())
    return CPU(platform.machine(), fields.get("model name", platform.processor() or "unknown"), features)
