"""cls_bpf"""
from __future__ import annotations
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Descriptor
from typing import Any
def attach(program: Descriptor, interface: Interface, hook: str, why: str) -> Any:
    raise NotImplementedError
