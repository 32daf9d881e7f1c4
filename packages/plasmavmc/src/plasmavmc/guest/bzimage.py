"""The kernel proper (vmlinux, an ELF file) out of a bzImage.

QEMU starts a vmlinux with a PVH note directly, which saves the guest its real-mode setup and decompression, a quarter of
a second under emulation. Layout: Linux, Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import lzma
import struct
import zlib

import zstandard

from plasmavmc.errors import HostError
from plasmavmc.host.run import run
from plasmavmc.types import MIB

MAX_VMLINUX = 512 * MIB
_SECTOR = 512
_SETUP_SECTORS = 0x1F1
_SIGNATURE = slice(0x202, 0x206)
_PAYLOAD = 0x248
_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\0"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_SIZE_TRAILER = 4
"""All but gzip are followed by the uncompressed size, which the kernel's own unpacker reads."""


def payload(image: bytes) -> bytes:
    """The compressed kernel within a bzImage.

    Raises:
        HostError: `bad-kernel`, not a bzImage with a payload (boot protocol 2.08 and later).
    """
    if len(image) < _PAYLOAD + 8 or image[_SIGNATURE] != b"HdrS":
        raise HostError("bad-kernel", "the kernel image is no bzImage")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (image[_SETUP_SECTORS] + 1) * _SECTOR + offset
    if not length or start + length > len(image):
        raise HostError("bad-kernel", "the kernel image is cut short")
    return image[start : start + length]


async def extract_vmlinux(image: bytes) -> bytes:
    """The ELF kernel within a bzImage.

    Raises:
        HostError: `bad-kernel`; `missing-program` where lz4 is needed and not installed.
    """
    vmlinux = await _decompress(payload(image))
    if not vmlinux.startswith(b"\x7fELF"):
        raise HostError("bad-kernel", "what the kernel image holds is no ELF file")
    return vmlinux


async def _decompress(packed: bytes) -> bytes:
    body = packed[:-_SIZE_TRAILER]
    try:
        if packed.startswith(_GZIP):
            return zlib.decompress(packed, wbits=31)
        if packed.startswith(_XZ):
            return lzma.decompress(body)
        if packed.startswith(_ZSTD):
            return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise HostError("bad-kernel", "the kernel image cannot be decompressed", details=str(error)) from error
    if packed.startswith(_LZ4_LEGACY):
        return await _decompress_lz4(body)
    raise HostError("bad-kernel", f"the kernel image is compressed in an unknown way (it begins {packed[:4].hex()})")


async def _decompress_lz4(body: bytes) -> bytes:
    """By the lz4 program: the standard library has no LZ4."""
    completed = await run(["lz4", "-dc"], stdin=body, timeout_s=60, max_output=MAX_VMLINUX)
    if completed.returncode != 0:
        raise HostError("bad-kernel", "the kernel image cannot be decompressed", details=completed.complaint)
    return completed.stdout
