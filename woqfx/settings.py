"""Which plugins to load.

The environment says:

* `WOQFX_PLUGINS=a,b,no:c`: also load `a` and `b` (entry points, or modules to import); never load `c`.
  Where two distributions use one entry-point name, `distribution:name` means one of them.
* `WOQFX_DISABLE_PLUGIN_AUTOLOAD=1`: load nothing but what `WOQFX_PLUGINS` names.
* `WOQFX_STRICT_PLUGINS=1`: the first problem of any plugin is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Which plugins to load; read from the environment by default."""

    autoload: bool = True
    load: tuple[str, ...] = ()
    block: frozenset[str] = frozenset()
    strict: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables that are listed above."""
        listed = [name.strip() for name in environment.get("WOQFX_PLUGINS", "").split(",") if name.strip()]
        return cls(
            autoload=environment.get("WOQFX_DISABLE_PLUGIN_AUTOLOAD", "") in ("", "0"),
            load=tuple(name for name in listed if not name.startswith("no:")),
            block=frozenset(name.removeprefix("no:") for name in listed if name.startswith("no:")),
            strict=environment.get("WOQFX_STRICT_PLUGINS", "") not in ("", "0"),
        )
