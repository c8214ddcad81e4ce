"""cls_bpf"""

from __future__ import annotations

from typing import Any

from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Descriptor


def attach(program: Descriptor, interface: Interface, hook: str, why: str) -> Any:
    raise NotImplementedError
