"""Kernels of distributions, by the names of their metapackages: resolved, downloaded, unpacked into a cache.

apt does all that, with lists of its own under the cache, so the host's sources are neither used nor changed, and what
comes is checked against the archives' keys. Nothing is pinned: exact names rotate. What is cached is asked for again
after a week, and used as it is where the archive cannot be reached.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEBIAN_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
FRESH_FOR_S = 7 * 24 * 3600
PARTS = ("linux-image-", "linux-binary-", "linux-modules-", "linux-base-")
MODULES = ("lib/modules", "usr/lib/modules")


class KernelMissing(Exception):
    """A kernel that cannot be had: which, and why."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A distribution's suite: name, `deb` lines without the key, and the package in `trixie` that holds its key."""

    name: str
    sources: tuple[str, ...]
    keyring_package: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kernel of the matrix: its name, its suite, and a pattern of packages, of which the newest version is taken."""

    name: str
    suite: Suite
    package: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: its name in the matrix, `uname -r`, image, and the directory that modprobe -d takes."""

    name: str
    release: str
    image: Path
    root: Path

    @property
    def modules(self) -> Path:
        return next(self.root / path / self.release for path in MODULES if (self.root / path / self.release).is_dir())


def _debian(suite: str, *more: str) -> Suite:
    return Suite(suite, tuple(f"http://deb.debian.org/{line} main" for line in (f"debian {suite}", *more)))


BULLSEYE = _debian("bullseye", "debian-security bullseye-security")
BOOKWORM = _debian("bookworm", "debian-security bookworm-security")
TRIXIE = _debian("trixie", "debian-security trixie-security")
BACKPORTS = _debian("trixie-backports")
JAMMY = Suite(
    "jammy",
    tuple(f"http://archive.ubuntu.com/ubuntu {suite} main" for suite in ("jammy", "jammy-updates", "jammy-security")),
    keyring_package="ubuntu-keyring",
)
CLOUD = "linux-image-cloud-amd64"
MATRIX = (
    Wanted("5.10", BULLSEYE, CLOUD),
    Wanted("5.15", JAMMY, "linux-image-virtual"),
    Wanted("6.1", BOOKWORM, CLOUD),
    Wanted("6.12", TRIXIE, CLOUD),
    # Its metapackage went on to newer ones.
    Wanted("6.18", BACKPORTS, r"linux-image-6\.18\.[^-]*-cloud-amd64"),
    Wanted("newest", BACKPORTS, CLOUD),
)


def cache() -> Path:
    """Where kernels are kept: shared by all checkouts of a user."""
    given = os.environ.get("FFPF_VM_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ffpf_bpf-vm"


def find(names: list[str]) -> list[Wanted]:
    """The kernels of that name; all if none is given. Raises KernelMissing for an unknown one."""
    known = {wanted.name: wanted for wanted in MATRIX}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise KernelMissing(f"no kernel `{unknown[0]}` in the matrix; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(MATRIX)


def obtain(wanted: Wanted, at: Path, say: Callable[[str], None]) -> Kernel:
    """The kernel, from the cache `at` if it is fresh or the archive out of reach. Raises KernelMissing."""
    with _locked(at):
        kept = _kept(wanted, at)
        if kept and time.time() - (at / wanted.name).stat().st_mtime < FRESH_FOR_S:
            return kept
        try:
            apt = Apt(wanted.suite, at)
            apt.update()
            packages = resolve(wanted.package, apt.show)
            if kept and (at / wanted.name / "packages").read_text().split() == packages:
                os.utime(at / wanted.name)
                return kept
            say(f"{wanted.name}: {', '.join(packages)}")
            return _unpack(wanted, apt, packages, at)
        except (subprocess.CalledProcessError, KernelMissing) as error:
            reason = f"{wanted.name}: {_reason(error)}"
            if kept is None:
                raise KernelMissing(reason) from None
            say(f"{reason}; the cached {kept.release} is used")
            return kept


def resolve(pattern: str, show: Callable[[str], list[Mapping[str, str]]]) -> list[str]:
    """The packages `NAME=VERSION` that hold image and modules behind a metapackage: what it depends on of the same
    source, however it is split. `show` gives the archive's stanzas of the packages that match, newest first."""
    found: dict[str, str] = {}
    waiting = [pattern]
    while waiting:
        stanzas = show(waiting.pop())
        if not stanzas:
            if not found:
                raise KernelMissing(f"the archive has no package `{pattern}`")
            continue
        newest = stanzas[0]
        if newest["Package"] in found:
            continue
        found[newest["Package"]] = newest["Version"]
        waiting += [re.escape(name) for name in depends(newest) if name.startswith(PARTS)]
    kept = {name: version for name, version in found.items() if re.search(r"-\d+\.\d+", name)}
    return [f"{name}={version}" for name, version in sorted(kept.items())]


def depends(stanza: Mapping[str, str]) -> list[str]:
    """The names a package depends on; of alternatives the first."""
    entries = [entry.split("|")[0].strip() for entry in stanza.get("Depends", "").split(",")]
    return [entry.split(" ")[0].split(":")[0] for entry in entries if entry]


def stanzas(text: str) -> list[Mapping[str, str]]:
    """What `apt-cache` prints of packages, field by field."""
    return [
        dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith(" "))
        for paragraph in text.strip().split("\n\n")
        if paragraph.strip()
    ]


class Apt:
    """apt with sources, lists and downloads of one suite's own, under the cache."""

    def __init__(self, suite: Suite, at: Path) -> None:
        self.suite = suite
        self.root = at / "apt" / suite.name
        for directory in ("lists/partial", "cache/archives/partial", "state"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        (self.root / "state/status").touch()
        keys = DEBIAN_KEYS if not suite.keyring_package else _keys(suite.keyring_package, at)
        lines = "".join(f"deb [arch=amd64 signed-by={keys}] {line}\n" for line in suite.sources)
        (self.root / "sources.list").write_text(lines)

    def update(self) -> None:
        self._run("apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any")

    def show(self, pattern: str) -> list[Mapping[str, str]]:
        """Stanzas of the packages whose name matches, the newest version first."""
        names = self._run("apt-cache", "pkgnames", "linux-").split()
        matching = [name for name in names if re.fullmatch(pattern, name)]
        if not matching:
            return []
        found = stanzas(self._run("apt-cache", "show", *matching))
        return sorted(found, key=lambda stanza: order(stanza["Version"]), reverse=True)

    def download(self, packages: list[str], to: Path) -> list[Path]:
        self._run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *packages, directory=to)
        return sorted(to.glob("*.deb"))

    def _run(self, *words: str, directory: Path | None = None) -> str:
        options = {
            "APT::Architecture": "amd64",
            "Dir::Etc::SourceList": self.root / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": self.root / "state",
            "Dir::State::Lists": self.root / "lists",
            "Dir::State::Status": self.root / "state/status",
            "Dir::Cache": self.root / "cache",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
        }
        command = [words[0], *(f"-o{name}={value}" for name, value in options.items()), *words[1:]]
        done = subprocess.run(
            command, cwd=directory, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        return done.stdout


def order(version: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts versions of one package as numbers and words: enough for kernels. `~` is before the end."""
    parts = re.findall(r"\d+|[^\d.]+", version)
    return (*((int(part), "") if part.isdigit() else (-1, part) for part in parts), (0, ""))


def _keys(package: str, at: Path) -> Path:
    """Another distribution's keys, out of Debian's package of them."""
    unpacked = at / "keys" / package
    found = sorted(unpacked.glob("usr/share/keyrings/*-archive-keyring.gpg"))
    if not found:
        apt = Apt(TRIXIE, at)
        apt.update()
        _extract(apt.download([package], _fresh(at / "keys" / "new")), unpacked)
        found = sorted(unpacked.glob("usr/share/keyrings/*-archive-keyring.gpg"))
    return found[0]


def _unpack(wanted: Wanted, apt: Apt, packages: list[str], at: Path) -> Kernel:
    new = _fresh(at / f"{wanted.name}.new")
    files = apt.download(packages, new)
    _extract(files, new)
    for file in files:
        file.unlink()
    (new / "packages").write_text("\n".join(packages) + "\n")
    release = _release(new)
    subprocess.run(["depmod", "-b", _module_root(new), release], check=True, capture_output=True, text=True)
    shutil.rmtree(at / wanted.name, ignore_errors=True)
    new.rename(at / wanted.name)
    kept = _kept(wanted, at)
    if kept is None:
        raise KernelMissing(f"no image in {', '.join(packages)}")
    return kept


def _extract(files: list[Path], to: Path) -> None:
    for file in files:
        subprocess.run(["dpkg-deb", "-x", file, to], check=True, capture_output=True, text=True)


def _kept(wanted: Wanted, at: Path) -> Kernel | None:
    root = at / wanted.name
    try:
        release = _release(root)
    except KernelMissing:
        return None
    images = [*root.glob(f"boot/vmlinuz-{release}"), *root.glob(f"usr/lib/modules/{release}/vmlinuz")]
    return Kernel(wanted.name, release, images[0], _module_root(root)) if images else None


def _release(root: Path) -> str:
    found = [directory.name for path in MODULES for directory in root.glob(f"{path}/*")]
    if not found:
        raise KernelMissing(f"no modules in {root}")
    return found[0]


def _module_root(root: Path) -> Path:
    """What depmod and modprobe take: the directory in which lib/modules is."""
    return root if (root / "lib/modules").is_dir() else root / "usr"


def _fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _reason(error: Exception) -> str:
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return (text.strip().splitlines() or [str(error)])[0]


@contextmanager
def _locked(at: Path) -> Iterator[None]:
    at.mkdir(parents=True, exist_ok=True)
    with (at / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
