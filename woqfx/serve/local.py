"""Names that only this machine has for itself.

A page of the web can make a browser ask for a name of its own that leads to 127.0.0.1 (DNS rebinding), and then reads
what a server here answers. Such a request says the page's name in its header `Host`.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_local(name: str) -> bool:
    """Whether an address or name, without a port, leads to this machine and to nowhere else."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def names_this_machine(header: str) -> bool:
    """Whether that is what a header `Host` says."""
    try:
        return is_local(urlsplit(f"//{header}").hostname or "")
    except ValueError:  # half of a bracket
        return False
