"""Small files that grow to gigabytes when they are read."""

import gzip
import struct
import zlib
from pathlib import Path

ZEROS = 2**20


def deflated(count: int) -> bytes:
    """A raw deflate stream of `count` MiB of zeros: one block of 1 MiB many times, made in no time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(ZEROS)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
    return block * count + end


def png(path: Path, width: int, height: int, bits: int) -> None:
    """A gray PNG of zeros; its check sum is wrong, which its reader finds at the end."""
    size = height * (1 + width * bits // 8)
    pixels = b"\x78\x9c" + deflated(-(-size // ZEROS)) + b"\0\0\0\0"
    chunks = (b"IHDR", struct.pack(">2I5B", width, height, bits, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")
    whole = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(whole))


def zipped(path: Path, member: str, count: int) -> None:
    """A zip whose one member is `count` MiB of zeros."""
    data, name, size = deflated(count), member.encode(), min(count * ZEROS, 2**32 - 1)
    common = struct.pack("<5H3L2H", 20, 0, 8, 0, 0, 0, len(data), size, len(name), 0)
    local = b"PK\3\4" + common + name + data
    entry = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<3H2L", 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, len(entry), len(local), 0)
    path.write_bytes(local + entry + end)


def long_line(path: Path, begin: bytes, count: int) -> None:
    """A gzipped text that ends in a line of `count` MiB."""
    path.write_bytes(gzip.compress(begin) + gzip.compress(b"x" * ZEROS) * count)


def tiff(path: Path, tile: int) -> None:
    """A TIFF of 16 × 16 pixels in one tile of `tile` × `tile`, deflated."""
    pixels = b"\x78\x9c" + deflated(tile * tile // ZEROS) + b"\0\0\0\0"
    tags = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, tile),
        (323, tile),
        (324, 8),
        (325, len(pixels)),
    ]
    entries = b"".join(struct.pack("<2H2L", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<L", 8 + len(pixels))
    path.write_bytes(head + pixels + struct.pack("<H", len(tags)) + entries + bytes(4))
