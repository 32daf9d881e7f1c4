"""The file tree of an image, in memory: what the layers, applied in order, leave (OCI image-spec, layer.md).

Theory. A tree of directories whose leaves are *inodes*: a hard link is a second name for the same inode. So a name that
an upper layer replaces gets a new inode, and the other names of the old one keep the old content. Nothing touches a file
system, so there is nothing that a path could escape to; `..` in a name is refused all the same, for no tool writes it.

A layer is applied in two rounds: first its whiteouts, to what the layers below left, then its entries in their order.
That is the meaning in the specification (a whiteout never hides its own layer), and it makes a whiteout one
operation, however much it hides.

What a name makes is counted where it is made: a single name of a few kilobytes makes two thousand directories.

    entry                        what is there               becomes
    directory                    directory                   its attributes replaced, its content kept
    anything else                anything                    replaced, with all below it
    x/y                          x is a symbolic link        y in the directory it leads to, within the image's root
    x/y                          x is a file, or nothing     x becomes a directory (root, 0755)
    hard link                    its target                  another name of the target's inode

The last one of doubled entries wins. A leading `/` means the image's root. Marks of aufs (`.wh..wh.plnk` and the like)
read as whiteouts of names that nothing has. Device nodes stay as the image has them: they are data
here, and in the guest they give a process no more than the guest's root has by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from plasmavmc.errors import ImageError
from plasmavmc.images.layers import Budget
from plasmavmc.images.limits import LINK_HOPS, NAME_BYTES, PATH_BYTES
from plasmavmc.images.tar import Kind, Member

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_DIRECTORY_BYTES = 320
"""Memory of a directory with one child, beside their names."""
_DETOURS = 4_000_000
"""Path components that symbolic links may cost in one image; two per entry are usual."""


@dataclass(slots=True, eq=False)
class Inode:
    """A file, link target or device, and where its data lies: the `ordinal`th member of layer `layer`."""

    member: Member
    layer: int
    ordinal: int
    path: bytes = b""
    """Its first name in the finished tree; set when the tree is written."""


@dataclass(slots=True, eq=False)
class Directory:
    member: Member | None = None
    """Its attributes; None where no layer has an entry for it."""
    children: dict[bytes, Directory | Inode] = field(default_factory=dict)


def hostile(code: str, brief: str, name: bytes) -> ImageError:
    return ImageError(code, f"the image is refused: {brief}", details=repr(name[:200]))


def split_path(name: bytes) -> tuple[bytes, ...]:
    """The components of a member's name; the empty tuple is the root.

    Raises:
        ImageError: `image-path`: `..`, a NUL, or longer than Linux takes.
    """
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise hostile("image-path", "a name in a layer leads upwards (..)", name)
    if b"\0" in name:
        raise hostile("image-path", "a name in a layer has a NUL byte", name)
    if len(name) > PATH_BYTES or any(len(part) > NAME_BYTES for part in parts):
        raise hostile("image-path", "a name in a layer is longer than Linux takes", name)
    return parts


class Tree:
    """Applies layers, lowest first. Directories are charged to the budget, in which members are already."""

    def __init__(self, budget: Budget) -> None:
        self.root = Directory()
        self._budget = budget
        self._detours = 0

    def apply(self, layer: int, members: Sequence[tuple[int, Member]]) -> Iterator[None]:
        """Apply a layer: its members with their ordinals. Yields between small steps.

        Raises:
            ImageError: `image-path`, `image-hard-link`, `image-links`, `image-tar`, `image-too-large`.
        """
        entries: list[tuple[int, Member]] = []
        for ordinal, member in members:
            parts = split_path(member.name)
            if parts and parts[-1].startswith(_WHITEOUT):
                self._whiteout(parts)
            else:
                entries.append((ordinal, member))
            yield
        for ordinal, member in entries:  # split again: the parts of a name may take sixteen times its memory
            self._enter(Inode(member, layer, ordinal), split_path(member.name))
            yield

    # One entry

    def _whiteout(self, parts: tuple[bytes, ...]) -> None:
        parent = self._find_directory(parts[:-1])
        if parts[-1] == _OPAQUE:
            if parent is not None:
                parent.children.clear()
        else:
            hidden = parts[-1].removeprefix(_WHITEOUT)
            if hidden in (b"", b".", b".."):
                raise hostile("image-path", "a whiteout names no file", parts[-1])
            if parent is not None:
                parent.children.pop(hidden, None)

    def _enter(self, inode: Inode, parts: tuple[bytes, ...]) -> None:
        member = inode.member
        if not parts:
            if member.kind is not Kind.DIRECTORY:
                raise hostile("image-path", "the root of a layer is not a directory", member.name)
            self.root.member = member
            return
        parent = self._make_directory(parts[:-1])
        match member.kind:
            case Kind.DIRECTORY:
                here = parent.children.get(parts[-1])
                if not isinstance(here, Directory):
                    self._budget.metadata(_DIRECTORY_BYTES)
                    here = parent.children[parts[-1]] = Directory()
                here.member = member
            case Kind.HARD_LINK:
                parent.children[parts[-1]] = self._link_target(member)
            case Kind.SYMLINK if not 0 < len(member.link) <= PATH_BYTES or b"\0" in member.link:
                raise hostile("image-path", "a symbolic link has an empty or over-long target", member.name)
            case _:
                parent.children[parts[-1]] = inode

    def _link_target(self, member: Member) -> Inode:
        parts = split_path(member.link)
        parent = self._find_directory(parts[:-1])
        target = parent.children.get(parts[-1]) if parts and parent is not None else None
        if not isinstance(target, Inode):
            what = "a directory" if isinstance(target, Directory) or not parts else "a name that does not exist"
            raise hostile("image-hard-link", f"a hard link leads to {what}", member.name + b" -> " + member.link)
        return target

    # Paths

    def _find_directory(self, parts: tuple[bytes, ...]) -> Directory | None:
        return self._walk(parts, make=False)

    def _make_directory(self, parts: tuple[bytes, ...]) -> Directory:
        found = self._walk(parts, make=True)
        assert found is not None  # noqa: S101 - a walk that makes always arrives
        return found

    def _walk(self, parts: tuple[bytes, ...], *, make: bool) -> Directory | None:
        """The directory at a path, through symbolic links, never above the root; what is missing is made, or None."""
        trail, todo, hops = [self.root], list(reversed(parts)), 0
        while todo:
            name = todo.pop()
            if name == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            node = trail[-1].children.get(name)
            if isinstance(node, Directory):
                trail.append(node)
            elif isinstance(node, Inode) and node.member.kind is Kind.SYMLINK:
                hops += 1
                steps = self._detour(node.member, hops)
                if node.member.link.startswith(b"/"):
                    del trail[1:]
                todo.extend(reversed(steps))
            elif make:
                self._budget.entry(_DIRECTORY_BYTES + len(name))
                made = trail[-1].children[name] = Directory()
                trail.append(made)
            else:
                return None
        return trail[-1]

    def _detour(self, link: Member, hops: int) -> list[bytes]:
        """The components of a symbolic link's target; counted, so that chains of links cannot cost without end."""
        steps = [part for part in link.link.split(b"/") if part not in (b"", b".")]
        self._detours += len(steps) + 1
        if hops > LINK_HOPS or self._detours > _DETOURS:
            raise hostile(
                "image-links", "symbolic links in a path of a layer form a loop or too long a chain", link.name
            )
        return steps
