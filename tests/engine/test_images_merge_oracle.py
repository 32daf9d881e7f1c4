"""The merge against an oracle: the same layers applied, entry by entry, to a real directory by the kernel's own rules."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from plasmavmc.errors import ImageError
from plasmavmc.images.layers import Layer
from plasmavmc.images.limits import LINK_HOPS, ImageLimits
from plasmavmc.images.merge import merge
from tests.contract.images_samples import digest_of, directory, entry, hard_link, layer, symlink

NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)


@dataclass(frozen=True)
class Step:
    kind: str
    name: str
    target: str = ""
    content: bytes = b""


FILES = st.builds(Step, st.just("file"), NAMES, content=st.binary(min_size=0, max_size=3))
DIRECTORIES = st.builds(Step, st.just("directory"), NAMES)
SYMLINKS = st.builds(Step, st.just("symlink"), NAMES, target=NAMES)
HARD_LINKS = st.builds(Step, st.just("hard link"), NAMES, target=NAMES)
WHITEOUTS = st.builds(Step, st.just("whiteout"), NAMES)
OPAQUES = st.builds(Step, st.just("opaque"), NAMES)
LAYERS = st.lists(
    st.lists(st.one_of(FILES, FILES, DIRECTORIES, SYMLINKS, HARD_LINKS, WHITEOUTS, OPAQUES), max_size=9),
    min_size=1,
    max_size=4,
)
Listing = dict[str, tuple[object, ...]]


class Refused(Exception):
    """The oracle's word for an image that must be refused."""


class Oracle:
    """Applies layers to a directory with system calls; symbolic links are resolved by the kernel where they lead."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def apply(self, steps: list[Step]) -> None:
        for step in steps:
            if step.kind in ("whiteout", "opaque"):
                self._hide(step)
        for step in steps:
            if step.kind not in ("whiteout", "opaque"):
                self._enter(step)

    def _hide(self, step: Step) -> None:
        parent, _, name = step.name.rpartition("/")
        path = self._existing(step.name if step.kind == "opaque" else parent)
        if path is None:
            return
        for child in path.iterdir() if step.kind == "opaque" else [path / name]:
            remove(child)

    def _enter(self, step: Step) -> None:
        parent, _, name = step.name.rpartition("/")
        path = self._made(self.root, parent.split("/") if parent else [], [0]) / name
        match step.kind:
            case "file":
                remove(path)
                path.write_bytes(step.content)
            case "directory":
                if path.is_symlink() or not path.is_dir():
                    remove(path)
                    path.mkdir()
            case "symlink":
                remove(path)
                path.symlink_to(step.target)
            case "hard link":
                self._link(path, step.target)

    def _link(self, path: Path, target: str) -> None:
        parent, _, name = target.rpartition("/")
        directory_of_target = self._existing(parent)
        source = None if directory_of_target is None else directory_of_target / name
        if source is None or not os.path.lexists(source) or (source.is_dir() and not source.is_symlink()):
            raise Refused
        if source.parent.samefile(path.parent) and source.name == path.name:
            return
        kept = self.root.parent / "kept"
        os.link(source, kept, follow_symlinks=False)
        remove(path)
        kept.rename(path)

    def _existing(self, name: str) -> Path | None:
        """A directory, symbolic links followed; None where there is none."""
        path = self.root / name
        try:
            return path if path.stat() and path.is_dir() else None
        except OSError as error:
            if error.errno == 40:
                raise Refused from error
            return None

    def _made(self, here: Path, parts: list[str], hops: list[int]) -> Path:
        """The directory below `here`, made where it is missing."""
        for count, part in enumerate(parts):
            path = here / part
            if path.is_symlink():
                hops[0] += 1
                if hops[0] > LINK_HOPS:
                    raise Refused
                return self._made(here, [*str(path.readlink()).split("/"), *parts[count + 1 :]], hops)
            if not path.is_dir():
                remove(path)
                path.mkdir()
            here = path
        return here

    def listing(self) -> Listing:
        found: Listing = {}
        inodes: dict[int, set[str]] = {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if path.is_symlink() or not path.is_dir():
                inodes.setdefault(path.lstat().st_ino, set()).add(name)
            found[name] = ("link", str(path.readlink())) if path.is_symlink() else describe(path)
        for names in inodes.values():
            for name in names:
                found[name] = (*found[name], frozenset(names))
        return found


def describe(path: Path) -> tuple[object, ...]:
    return ("directory",) if path.is_dir() else ("file", path.read_bytes())


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def as_layer(steps: list[Step]) -> bytes:
    return layer(*(as_entry(step) for step in steps))


def as_entry(step: Step) -> tuple[tarfile.TarInfo, bytes]:
    parent, slash, name = step.name.rpartition("/")
    match step.kind:
        case "file":
            return entry(step.name, step.content)
        case "directory":
            return directory(step.name)
        case "symlink":
            return symlink(step.name, step.target)
        case "hard link":
            return hard_link(step.name, step.target)
        case "whiteout":
            return entry(f"{parent}{slash}.wh.{name}")
        case _:
            return entry(f"{step.name}/.wh..wh..opq")


def merged_listing(layers: list[bytes]) -> Listing:
    """The same listing, from the merged tar."""
    opened = [Layer(io.BytesIO(data), len(data), digest_of(data)) for data in layers]
    data = b"".join(merge(opened, ImageLimits()))
    found: Listing = {}
    groups: dict[str, set[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.name == ".":
                continue
            assert member.name not in found, "a path was written twice"
            if member.isdir():
                found[member.name] = ("directory",)
                continue
            first = member.linkname if member.islnk() else member.name
            groups.setdefault(first, set()).add(member.name)
            file = archive.extractfile(member) if member.isreg() else None
            content = ("file", file.read()) if file else ("link", member.linkname)
            found[member.name] = found[first] if member.islnk() else content
    for names in groups.values():
        for name in names:
            found[name] = (*found[name], frozenset(names))
    return found


@settings(max_examples=400, deadline=None)
@given(LAYERS)
def test_the_merge_leaves_what_applying_the_layers_to_a_directory_leaves(layers: list[list[Step]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        root.mkdir()
        oracle = Oracle(root)
        try:
            for steps in layers:
                oracle.apply(steps)
            expected: Listing | None = oracle.listing()
        except Refused:
            expected = None
    try:
        found: Listing | None = merged_listing([as_layer(steps) for steps in layers])
    except ImageError:
        found = None
    assert found == expected
