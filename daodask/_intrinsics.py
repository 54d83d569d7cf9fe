"""What compiled loops need and numba does not have: C functions by their addresses, and stores past the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _numba_intrinsic

__all__ = [
    "LANES",
    "call_crc32c",
    "call_decompress",
    "call_getitem",
    "call_pread",
    "fence",
    "is_wide",
    "note_wanted",
    "prefetch",
    "stream",
    "uncounted",
]

#: Elements that are dealt with at a time: at 4 bytes each, the 64 of a cache line.
LANES: Final = 16


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function of compiled code that writes its own instructions; what it is called with there, only numba knows."""
    return _numba_intrinsic(function)


_BYTE_POINTER: Final = ir.IntType(8).as_pointer()
_INT32: Final = ir.IntType(32)
_SIZE: Final = ir.IntType(64)


def _call(builder: Any, address: Any, result: Any, arguments: list[tuple[Any, Any]]) -> Any:
    """A call of the C function at an address; integers become pointers where the function takes them."""
    kinds = [kind for kind, _ in arguments]
    function = builder.inttoptr(address, ir.FunctionType(result, kinds).as_pointer())
    values = [builder.inttoptr(v, kind) if kind is _BYTE_POINTER else v for kind, v in arguments]
    return builder.call(function, values)


@intrinsic
def call_decompress(typingctx: Any, function: Any, source: Any, target: Any, size: Any) -> Any:
    """``blosc_decompress_ctx(source, target, size, 1)``: bytes written, or no positive number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, src, dst, n = args
        one_thread = ir.Constant(_INT32, 1)
        arguments = [(_BYTE_POINTER, src), (_BYTE_POINTER, dst), (_SIZE, n), (_INT32, one_thread)]
        return _call(builder, address, _INT32, arguments)

    return types.int32(types.uintp, types.uintp, types.uintp, types.uintp), codegen


@intrinsic
def call_getitem(typingctx: Any, function: Any, source: Any, start: Any, count: Any, target: Any) -> Any:
    """``blosc_getitem(source, start, count, target)``: bytes written, or no positive number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, src, start, count, dst = args
        arguments = [(_BYTE_POINTER, src), (_INT32, start), (_INT32, count), (_BYTE_POINTER, dst)]
        return _call(builder, address, _INT32, arguments)

    return types.int32(types.uintp, types.uintp, types.int32, types.int32, types.uintp), codegen


@intrinsic
def call_crc32c(typingctx: Any, function: Any, source: Any, size: Any) -> Any:
    """``crc32c_extend(0, source, size)``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, src, n = args
        arguments = [(_INT32, ir.Constant(_INT32, 0)), (_BYTE_POINTER, src), (_SIZE, n)]
        return _call(builder, address, _INT32, arguments)

    return types.uint32(types.uintp, types.uintp, types.uintp), codegen


@intrinsic
def call_pread(typingctx: Any, function: Any, descriptor: Any, target: Any, size: Any, offset: Any) -> Any:
    """``pread(descriptor, target, size, offset)``: bytes read, 0 at the end of the file, -1 where it failed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, file, dst, n, start = args
        return _call(builder, address, _SIZE, [(_INT32, file), (_BYTE_POINTER, dst), (_SIZE, n), (_SIZE, start)])

    return types.int64(types.uintp, types.int32, types.uintp, types.uintp, types.int64), codegen


@intrinsic
def stream(typingctx: Any, out: Any, position: Any, src: Any, start: Any) -> Any:
    """``out[position : position + LANES] = src[start : start + LANES]``, past the cache.

    An ordinary store first reads the line that it writes to; what is written once, and read much later, is written in
    half the time without. The address has to be a multiple of the bytes that are written, and a :func:`fence` has to
    follow before another thread reads them.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source = (context.make_array(t)(context, builder, a) for t, a in ((out, args[0]), (src, args[2])))
        kinds = [ir.VectorType(context.get_data_type(t.dtype), LANES) for t in (src, out)]
        read = builder.bitcast(builder.gep(source.data, [args[3]]), kinds[0].as_pointer())
        write = builder.bitcast(builder.gep(target.data, [args[1]]), kinds[1].as_pointer())
        loaded = builder.load(read, align=_width(src.dtype))
        store = builder.store(
            _converted(builder, loaded, src.dtype, out.dtype, kinds[1]), write, align=LANES * _width(out.dtype)
        )
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_INT32, 1)]))
        return context.get_dummy_value()

    return types.void(out, types.uintp, src, types.uintp), codegen


@intrinsic
def prefetch(typingctx: Any, out: Any, position: Any) -> Any:
    """Ask for the cache line of ``out[position]``, which is to be written to; it may be anywhere, and nothing waits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.gep(context.make_array(out)(context, builder, args[0]).data, [args[1]])
        for_writing, into_all_caches, data = 1, 3, 1
        options = [ir.Constant(_INT32, option) for option in (for_writing, into_all_caches, data)]
        kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, *[_INT32] * 3])
        function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE_POINTER], kind)
        builder.call(function, [builder.bitcast(place, _BYTE_POINTER), *options])
        return context.get_dummy_value()

    return types.void(out, types.uintp), codegen


def _width(kind: Any) -> int:
    """Bytes of an element."""
    return max(1, int(kind.bitwidth) // 8)


def _converted(builder: Any, values: Any, src: Any, out: Any, kind: Any) -> Any:
    """Values of one type as those of another, as C converts them."""
    from_float, to_float = (isinstance(t, types.Float) for t in (src, out))
    if from_float != to_float:
        number = src if to_float else out
        sign = "s" if getattr(number, "signed", False) else "u"
        return getattr(builder, f"{sign}itofp" if to_float else f"fpto{sign}i")(values, kind)
    if src.bitwidth == out.bitwidth:
        return values
    wider = out.bitwidth > src.bitwidth
    if from_float:
        return builder.fpext(values, kind) if wider else builder.fptrunc(values, kind)
    if wider:
        return builder.sext(values, kind) if src.signed else builder.zext(values, kind)
    return builder.trunc(values, kind)


_LANES_OF_INT32: Final = ir.VectorType(_INT32, LANES)


def _is_wide(context: Any) -> bool:
    """Whether what is compiled may use instructions for 16 numbers of 32 bits."""
    return "+avx512f" in context.codegen().magic_tuple()[-1].split(",")


@intrinsic
def is_wide(typingctx: Any) -> Any:
    """Whether the processor looks up, and sorts out, 16 numbers at a time; known when it is compiled."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), _is_wide(context))

    return types.boolean(), codegen


@intrinsic
def note_wanted(typingctx: Any, columns: Any, start: Any, words: Any, beyond: Any, found: Any, n: Any) -> Any:
    """Put down which of ``columns[start : start + LANES]`` are wanted, from ``found[n]`` on; returns the next ``n``.

    A column is wanted where its bit of the ``words`` is set, and one that is too large where bit ``beyond`` is. After
    that there have to be 32 words more, and after ``found[n]`` as many entries as there are lanes.

    Where columns are in order their bits lie side by side, and the words around them are looked up within registers.
    Nothing is put down where it :func:`is_wide` not.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _is_wide(context):
            return args[5]
        arrays = zip((columns, words, found), args[::2], strict=True)
        column, word, place = (context.make_array(kind)(context, builder, array) for kind, array in arrays)
        read = builder.gep(column.data, [args[1]])
        kind = ir.VectorType(context.get_data_type(columns.dtype), LANES)
        loaded = builder.load(builder.bitcast(read, kind.as_pointer()), align=_width(columns.dtype))
        loaded = _converted(builder, loaded, columns.dtype, types.uint32, _LANES_OF_INT32)
        last = _splat(builder, args[3])
        known = builder.select(builder.icmp_unsigned("<", loaded, last), loaded, last)
        bits = _words_of(builder, word.data, builder.lshr(known, _each(5)))
        bit = builder.shl(_each(1), builder.and_(known, _each(31)))
        wanted = builder.icmp_unsigned("!=", builder.and_(bits, bit), _each(0))
        first = _splat(builder, builder.trunc(args[1], _INT32))
        positions = builder.add(first, ir.Constant(_LANES_OF_INT32, list(range(LANES))))
        write = builder.bitcast(builder.gep(place.data, [args[5]]), _LANES_OF_INT32.as_pointer())
        builder.store(_native(builder, "mask.compress.v16i32", positions, _each(0), wanted), write, align=4)
        count = builder.ctpop(builder.bitcast(wanted, ir.IntType(LANES)))
        return builder.add(args[5], builder.zext(count, _SIZE))

    return types.uintp(columns, types.uintp, words, types.uint32, found, types.uintp), codegen


def _words_of(builder: Any, words: Any, numbers: Any) -> Any:
    """``words[numbers]`` of 16 numbers; in a fraction of the time where all are within 32 of the first."""
    first = builder.extract_element(numbers, ir.Constant(_INT32, 0))
    offsets = builder.sub(numbers, _splat(builder, first))
    near = builder.bitcast(builder.icmp_unsigned("<", offsets, _each(2 * LANES)), ir.IntType(LANES))
    all_near = builder.icmp_unsigned("==", near, ir.Constant(ir.IntType(LANES), -1))
    with builder.if_else(all_near) as (side_by_side, apart):
        with side_by_side:
            begin = builder.gep(words, [builder.zext(first, _SIZE)])
            parts = [builder.gep(begin, [ir.Constant(_SIZE, i)]) for i in (0, LANES)]
            low, high = (builder.load(builder.bitcast(p, _LANES_OF_INT32.as_pointer()), align=4) for p in parts)
            looked_up = _native(builder, "vpermi2var.d.512", low, offsets, high)
            here = builder.block
        with apart:
            mask = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES)
            base, width = builder.bitcast(words, _BYTE_POINTER), ir.Constant(_INT32, 4)
            gathered = _native(builder, "mask.gather.dpi.512", _each(0), base, numbers, mask, width)
            there = builder.block
    found = builder.phi(_LANES_OF_INT32)
    found.add_incoming(looked_up, here)
    found.add_incoming(gathered, there)
    return found


def _native(builder: Any, name: str, *args: Any) -> Any:
    """An instruction of AVX-512 on 16 numbers."""
    kind = ir.FunctionType(_LANES_OF_INT32, [a.type for a in args])
    return builder.call(builder.module.declare_intrinsic(f"llvm.x86.avx512.{name}", fnty=kind), args)


def _each(value: int) -> Any:
    return ir.Constant(_LANES_OF_INT32, [value] * LANES)


def _splat(builder: Any, value: Any) -> Any:
    """A number in every lane."""
    first = builder.insert_element(ir.Constant(_LANES_OF_INT32, ir.Undefined), value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, ir.Constant(_LANES_OF_INT32, ir.Undefined), _each(0))


@intrinsic
def fence(typingctx: Any) -> Any:
    """What was streamed can be read by any thread from here on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def uncounted(typingctx: Any, values: Any) -> Any:
    """The same arrays, in tuples of whatever else, to which references are not counted; the caller has to hold them.

    To count, a processor waits for all that was streamed: with every row that took a sixth of the time.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _without_owner(context, builder, values, args[0])

    return values(values), codegen


def _without_owner(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.BaseTuple):
        parts: Any = kind
        for i, part in enumerate(parts):
            inner = _without_owner(context, builder, part, builder.extract_value(value, i))
            value = builder.insert_value(value, inner, i)
    elif isinstance(kind, types.Array):
        view = context.make_array(kind)(context, builder, value)
        view.meminfo, view.parent = (ir.Constant(owner.type, None) for owner in (view.meminfo, view.parent))
        value = view._getvalue()  # noqa: SLF001  (the name that numba has for it)
    return value
