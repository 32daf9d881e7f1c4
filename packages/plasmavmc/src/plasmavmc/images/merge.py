"""Merging layers: from stored blobs to one tar stream in which every path comes exactly once.

Theory. Nothing is unpacked: neither to the host's file system, where a hostile layer could escape, nor to a spool, which
would double the disk an image needs. Instead each layer is decompressed twice. The first pass checks diff_id and
bounds and builds the tree (`tree.py`) from names and attributes. Then the archive is written in three parts:

    1. directories, empty files, links, devices: from the tree, parents before children, names in order
    2. files with content, layer after layer: the second pass, in which only what survived is let through
    3. further names of files (hard links), each after the name it refers to

The same layers give the same bytes, so the same digest gives the same squashfs. Memory holds names and attributes only,
which the budget bounds; content passes in chunks.

Only `user.*` and `security.*` attributes (file capabilities) are let through: squashfs has no room for POSIX ACLs, and
`trusted.overlay.*` would talk to the guest's overlay, in which this tree is the lower layer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from plasmavmc.images import tarwrite
from plasmavmc.images.layers import Budget, Layer, LayerStream, too_large
from plasmavmc.images.limits import PATH_BYTES, ImageLimits
from plasmavmc.images.tar import Kind, Member, Pauses, TarReader
from plasmavmc.images.tree import Directory, Inode, Tree, hostile
from plasmavmc.types import MIB

_BATCH = MIB // 2
_STEP = 512
"""Members between two chances to stop."""
_IMPLIED = Member(name=b"", kind=Kind.DIRECTORY, mode=0o755)
_XATTRS = (b"user.", b"security.")


def merge(layers: Sequence[Layer], limits: ImageLimits) -> Generator[bytes, None, None]:
    """The merged image as a tar stream, in chunks. Yields empty chunks while there is nothing to write yet.

    Raises:
        ImageError: `image-…` for what is malformed, hostile or too large; `digest-mismatch`.
    """
    budget = Budget(limits)
    tree = Tree(budget)
    yield from _read_tree(tree, layers, budget)
    outline = _Outline(Budget(limits))
    yield from _batched(outline.write(tree.root))
    yield from _batched(_contents(layers, outline.wanted, limits))
    yield from _batched(outline.write_links())
    yield tarwrite.END


def check(layers: Sequence[Layer], limits: ImageLimits) -> Generator[bytes, None, None]:
    """Do all of `merge` but the files' content, in steps, and write nothing; raises as it does."""
    budget = Budget(limits)
    tree = Tree(budget)
    yield from _read_tree(tree, layers, budget)
    for _ in _batched(_Outline(Budget(limits)).write(tree.root)):
        yield b""


def _read_tree(tree: Tree, layers: Sequence[Layer], budget: Budget) -> Iterator[bytes]:
    for number, layer in enumerate(layers):
        stream = LayerStream(layer, budget, verify=True)
        members: list[tuple[int, Member]] = []
        yield from _read_members(TarReader(stream), members, budget)
        stream.check_diff_id()
        yield from _breathing(tree.apply(number, members))


def _read_members(reader: TarReader, members: list[tuple[int, Member]], budget: Budget) -> Iterator[bytes]:
    pauses = Pauses(reader)
    for ordinal, member in enumerate(reader):
        budget.entry(member.metadata_bytes)
        budget.unpacked(member.size - member.stored)
        members.append((ordinal, member))
        yield from pauses.over(reader.skip())
    yield from pauses.over(reader.drain())


@dataclass(slots=True)
class _Outline:
    """Writes what has no content, and notes what has: `wanted[layer][ordinal]` is the file to write there."""

    budget: Budget
    """Of paths: through symbolic links a short name may have a long one, and all files of a directory its prefix."""
    wanted: dict[int, dict[int, Inode]] = field(default_factory=dict)
    _links: list[tuple[bytes, Inode]] = field(default_factory=list)
    _owners: set[int] = field(default_factory=set)

    def write(self, root: Directory) -> Iterator[bytes]:
        yield self._header(root.member or _IMPLIED, b"./")
        todo, noted = self._named(b"", root), 0
        while todo:
            path, node = todo.pop()
            if isinstance(node, Directory):
                yield self._header(node.member or _IMPLIED, path)
                todo.extend(self._named(path + b"/", node))
            elif node.path:
                self._links.append((path, node))
            elif node.member.size:
                self._note(path, node)
                noted += 1
                if noted % _STEP == 0:  # nothing to write, and a chance to stop
                    yield b""
            else:
                node.path = path
                yield self._header(node.member, path)

    def write_links(self) -> Iterator[bytes]:
        for path, inode in self._links:
            yield tarwrite.header(replace(inode.member, kind=Kind.HARD_LINK, size=0, xattrs=()), path, inode.path)

    def _note(self, path: bytes, inode: Inode) -> None:
        inode.path = path
        self.wanted.setdefault(inode.layer, {})[inode.ordinal] = inode
        self._count_owners(inode.member)

    def _header(self, member: Member, path: bytes) -> bytes:
        self._count_owners(member)
        return _header(member, path)

    def _count_owners(self, member: Member) -> None:
        self._owners.add(member.uid)
        self._owners.add(member.gid)
        if len(self._owners) > self.budget.limits.owners:
            raise too_large(f"its files have more than {self.budget.limits.owners} different owners")

    def _named(self, prefix: bytes, directory: Directory) -> list[tuple[bytes, Directory | Inode]]:
        """The children with their paths, last name first (they go onto a stack)."""
        lengths = [len(name) for name in directory.children]
        if len(prefix) + max(lengths, default=0) > PATH_BYTES:
            raise hostile("image-path", "a path in the image is longer than Linux takes", prefix)
        self.budget.metadata(len(prefix) * len(lengths) + sum(lengths))
        return [(prefix + name, directory.children[name]) for name in sorted(directory.children, reverse=True)]


def _contents(layers: Sequence[Layer], wanted: dict[int, dict[int, Inode]], limits: ImageLimits) -> Iterator[bytes]:
    """The files with content, in the order of their layers."""
    budget = Budget(limits)
    for number, layer in enumerate(layers):
        files = wanted.get(number, {})
        reader = TarReader(LayerStream(layer, budget, verify=False))
        pauses = Pauses(reader)
        left = len(files)
        for ordinal, member in enumerate(reader if left else ()):
            if (inode := files.get(ordinal)) is not None:
                yield _header(member, inode.path)
                yield from reader.data(member)
                yield tarwrite.padding(member.size)
                left -= 1
            yield from pauses.over(reader.skip())
            if not left:
                break


def _header(member: Member, path: bytes) -> bytes:
    if member.xattrs:
        kept = tuple(pair for pair in member.xattrs if pair[0].startswith(_XATTRS))
        member = replace(member, xattrs=kept)
    return tarwrite.header(member, path, member.link if member.kind is Kind.SYMLINK else b"")


def _batched(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in larger chunks."""
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH or len(batch) >= _STEP or not piece:
            yield b"".join(batch)
            batch, size = [], 0
    yield b"".join(batch)


def _breathing(steps: Iterable[None]) -> Iterator[bytes]:
    for count, _ in enumerate(steps):
        if count % _STEP == 0:
            yield b""
