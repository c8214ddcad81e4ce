"""Kernel headers for bcc, which compiles nothing without them.

Headers of the running kernel are best; a plain XDP program compiles as well with those of another, which
BCC_KERNEL_SOURCE points bcc to. Debian splits a kernel's headers in two directories: they are joined in a temporary
one.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "BCC_KERNEL_SOURCE"


class NoHeaders(Exception):
    """No kernel headers are here; the text says what to install."""


@contextmanager
def kernel_headers() -> Iterator[str]:
    """Headers that bcc finds; says which. Raises NoHeaders."""
    release = platform.release()
    if VARIABLE in os.environ:
        yield f"{VARIABLE}={os.environ[VARIABLE]}"
    elif Path(f"/lib/modules/{release}/build").is_dir() or Path("/sys/kernel/kheaders.tar.xz").exists():
        yield f"headers of {release}"
    else:
        found = sorted(Path("/usr/src").glob("linux-headers-*-amd64"))
        common = [path.with_name("-".join([*path.name.split("-")[:4], "common"])) for path in found]
        if not found or not common[-1].is_dir():
            raise NoHeaders("no kernel headers: `apt-get install linux-headers-cloud-amd64`")
        with tempfile.TemporaryDirectory(prefix="ffpf-headers-") as joined:
            for part in (common[-1], found[-1]):
                for folder in ("arch", "include"):
                    shutil.copytree(part / folder, Path(joined, folder), symlinks=True, dirs_exist_ok=True)
            os.environ[VARIABLE] = joined
            try:
                yield f"{found[-1].name} joined with {common[-1].name} in {VARIABLE} (none of {release} here)"
            finally:
                del os.environ[VARIABLE]
