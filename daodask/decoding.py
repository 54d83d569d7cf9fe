"""Compiled, and free of the GIL from the first chunk to the last: encoded chunks are checked, decoded and scattered.

Of each chunk only what its rows need is decoded, as far as the compressor cut it into blocks. What is read of any file
is checked here likewise.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from daodask._intrinsics import call_crc32c, call_decompress, call_getitem, call_pread, fence, uncounted
from daodask.format.chunks import BLOSC_HEADER, CHECKED
from daodask.format.codecs import CHECKSUM_BYTES
from daodask.kernels import accumulate, compiled, scatter, scatter_dense

__all__ = [
    "FINE",
    "STORED",
    "decode_chunks",
    "decode_side_by_side",
    "file_checksums",
    "scatter_chunks",
    "scatter_dense_chunks",
]

#: What :func:`scatter_chunks` returns where every chunk could be decoded, else it is the chunk's position.
FINE: Final = -1
#: The codec of chunks that are stored as they are; any other number is Blosc's.
STORED: Final = 0

_HEADER_BYTES: Final = BLOSC_HEADER.size
_CHECKED: Final = np.uint32(CHECKED)


@compiled
def _uint32(data: Any, position: int) -> Any:
    """A little-endian number."""
    value = np.uint32(0)
    for k in range(4):
        value |= np.uint32(data[position + k]) << np.uint32(8 * k)
    return np.int64(value)


@compiled
def _read(functions: Any, descriptor: int, data: Any, begin: int, end: int) -> bool:
    """Read a part of a file to where ``data`` begins; false where it ends before, or can't be read."""
    start, done = np.uintp(data.ctypes.data), 0
    while done < end - begin:
        got = call_pread(
            functions[3], np.int32(descriptor), start + np.uintp(done), np.uintp(end - begin - done), begin + done
        )
        if got <= 0:
            return False
        done += got
    return True


@compiled
def file_checksums(functions: Any, descriptor: int, start: int, piece: Any, out: Any) -> bool:
    """CRC32C of pieces of a file, each as long as ``piece`` has room, into ``out``; false where it can't be read.

    The first begins at ``start``; where the file ends before the last, the others are of no bytes.
    """
    target, position = np.uintp(piece.ctypes.data), start
    for i in range(len(out)):
        done, got = 0, 1
        while done < len(piece) and got > 0:
            room = np.uintp(len(piece) - done)
            got = call_pread(functions[3], np.int32(descriptor), target + np.uintp(done), room, position + done)
            if got < 0:
                return False
            done += got
        out[i] = call_crc32c(functions[2], target, np.uintp(done))
        position += done
    return True


@compiled
def _decompress(
    functions: Any, form: Any, source: Any, begin: int, end: int, first: int, last: int, scratch: Any
) -> int:
    """As :func:`_decode`, but differences stay differences."""
    decompress, getitem, crc32c, _ = functions
    codec, checked, _ = form
    descriptor, data = source
    if descriptor >= 0:
        if not _read(functions, descriptor, data, begin, end):
            return -1
        begin, end = 0, end - begin
    address = np.uintp(data.ctypes.data) + np.uintp(begin)
    target = np.uintp(scratch.ctypes.data)
    whole: Any = np.int64(scratch.nbytes)
    if checked:
        if end - begin < CHECKSUM_BYTES or call_crc32c(crc32c, address, np.uintp(end - begin)) != _CHECKED:
            return -1
        end -= CHECKSUM_BYTES
    if codec == STORED:
        if end - begin == whole:
            scratch.view(np.uint8)[:] = data[begin:end]
        return 0 if end - begin == whole else -1
    # The library trusts the sizes in the header, and would write past the end.
    if end - begin < _HEADER_BYTES or _uint32(data, begin + 4) != whole or _uint32(data, begin + 12) != end - begin:
        return -1
    block, width = _uint32(data, begin + 8), np.int64(scratch.itemsize)
    # A part costs one more copy.
    if 0 < block < whole and data[begin + 3] == width and _blocks(first, last, width, block) * block < 0.8 * whole:
        got = call_getitem(getitem, address, np.int32(first), np.int32(last - first), target)
        return first if got == (last - first) * width else -1
    return 0 if call_decompress(decompress, address, target, np.uintp(whole)) == whole else -1


@compiled
def _decode(functions: Any, form: Any, source: Any, begin: int, end: int, first: int, last: int, scratch: Any) -> int:
    """Decode elements of a chunk, at least ``[first, last)``, into a scratch as long as a chunk.

    Parameters
    ----------
    functions
        Addresses, see :class:`~daodask._foreign.Decoders`.
    form
        Whether chunks are compressed, whether they end with a checksum, and whether they have differences.
    source, begin, end
        Bytes, and where in them the chunk is. Before the bytes comes the descriptor of an open file, which they are to
        be read from, to the beginning of the bytes; it is negative where they are there already.

    Returns
    -------
    int
        The element that the scratch begins with, or a negative number where the chunk is not what it should be.
    """
    if not form[2]:
        return int(_decompress(functions, form, source, begin, end, first, last, scratch))
    # An element is the sum of all until it.
    offset = _decompress(functions, form, source, begin, end, 0, last, scratch)
    if offset == 0:
        accumulate(scratch[:last])
    return int(offset)


@compiled
def _blocks(first: Any, last: Any, width: Any, block: Any) -> Any:
    """How many blocks have elements of a range."""
    return (last * width - 1) // block - first * width // block + 1


@compiled
def _needed(number: Any, chunk: int, length: int, low: Any, high: Any) -> tuple[Any, Any, Any, Any, Any]:
    """First element of a chunk, which rows have elements in it, and from where to where in the chunk these are."""
    start = number * chunk
    stop = min(start + chunk, length)
    a = np.searchsorted(high, start, side="right")
    b = np.searchsorted(low, stop, side="left")
    if a >= b:
        return start, a, b, 0, 0
    return start, a, b, max(low[a], start) - start, min(high[b - 1], stop) - start


@compiled
def decode_chunks(functions: Any, form: Any, source: Any, bounds: Any, scratch: Any) -> int:
    """Decompress chunks to nowhere: what the others here cannot be faster than."""
    for i in range(len(bounds)):
        if _decompress(functions, form, source, bounds[i, 0], bounds[i, 1], 0, len(scratch), scratch) != 0:
            return i
    return FINE


@compiled
def decode_side_by_side(functions: Any, form: Any, source: Any, bounds: Any, chunk: int, out: Any) -> int:
    """Decode whole chunks of so many elements into ``out``, one after another; returns as :func:`scatter_chunks`."""
    for i in range(len(bounds)):
        place = out[i * chunk : (i + 1) * chunk]
        if _decode(functions, form, source, bounds[i, 0], bounds[i, 1], 0, chunk, place) != 0:
            return i
    return FINE


@compiled
def scatter_chunks(
    functions: Any,
    form: Any,
    source: Any,
    bounds: Any,
    numbers: Any,
    length: int,
    rows: Any,
    scratch: Any,
    out: Any,
    past_cache: bool,
) -> int:
    """Decode chunks, and copy rows' elements out of each.

    Parameters
    ----------
    functions, form, source
        See :func:`_decode`.
    bounds, numbers
        Where each chunk begins and ends, and their numbers.
    length
        Elements of the array, as the last chunk is padded.
    rows
        The ``low``, ``high`` and ``dst`` of :func:`daodask.kernels.scatter`.
    out, past_cache
        See there.
    scratch
        Of the array's dtype, as long as a chunk.

    Returns
    -------
    int
        :data:`FINE`, or the position of a chunk that can't be decoded.
    """
    (low, high, dst), source, bounds, numbers, scratch, out = uncounted((rows, source, bounds, numbers, scratch, out))
    chunk = len(scratch)
    bad = FINE
    for i in range(len(numbers)):
        start, a, b, first, last = _needed(numbers[i], chunk, length, low, high)
        if a >= b:
            continue
        offset = _decode(functions, form, source, bounds[i, 0], bounds[i, 1], first, last, scratch)
        if offset < 0:
            bad = i
            break
        src = scratch[: last - offset]
        scatter(src, start + offset, low[a:b], high[a:b], dst[a:b], out, past_cache)
    if past_cache:
        fence()
    return bad


@compiled
def scatter_dense_chunks(
    functions: Any,
    forms: Any,
    sources: Any,
    bounds: Any,
    numbers: Any,
    length: int,
    rows: Any,
    lookup: Any,
    scratches: Any,
    room: Any,
    out: Any,
    past_cache: bool,
) -> tuple[int, int, int]:
    """Decode pairs of chunks, and put rows' values into a dense array.

    Parameters
    ----------
    functions, forms, sources, bounds, scratches
        As of :func:`scatter_chunks`, each a pair: of the columns and of the values.
    numbers, length
        As there.
    rows
        The ``low``, ``high`` and ``place`` of :func:`daodask.kernels.scatter_dense`.
    lookup, room, out, past_cache
        See there.

    Returns
    -------
    tuple
        Which of the two has a chunk that can't be decoded, and its position, as of :func:`scatter_chunks`; how many
        elements are of columns that there should not be.
    """
    (low, high, place), sources, bounds, numbers = uncounted((rows, sources, bounds, numbers))
    lookup, scratches, room, out = uncounted((lookup, scratches, room, out))
    chunk = len(scratches[0])
    which, bad, strange = 0, FINE, 0
    for i in range(len(numbers)):
        start, a, b, first, last = _needed(numbers[i], chunk, length, low, high)
        if a >= b:
            continue
        offset = _decode(functions, forms[0], sources[0], bounds[0][i, 0], bounds[0][i, 1], first, last, scratches[0])
        other = _decode(functions, forms[1], sources[1], bounds[1][i, 0], bounds[1][i, 1], first, last, scratches[1])
        if offset < 0 or other < 0:
            which, bad = int(offset >= 0), i
            break
        pair = scratches[0][first - offset : last - offset], scratches[1][first - other : last - other]
        of = slice(a, b)
        strange += scatter_dense(*pair, start + first, low[of], high[of], place[of], lookup, room, out, past_cache)
    if past_cache:
        fence()
    return which, bad, strange
