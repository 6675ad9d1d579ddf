"""Vector instructions that numba's own vectoriser does not find, written as LLVM IR.

Each is a numba intrinsic over flat float32 arrays. A matrix is named by a tuple: array, index of
its first element, elements from row to row, and (where the code is unrolled over them) rows.
Sizes that unroll must be constants of the calling kernel; LLVM maps vectors of any width to what
the processor has.

numba's on-disk cache does not see a change here: touch the modules that use it.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


class _Vectors:
    """Emits loads, stores and arithmetic on vectors of ``width`` floats."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder = builder
        self.width = width
        self.type = ir.VectorType(_FLOAT, width)
        self.zero = ir.Constant(self.type, [0.0] * width)

    def load(self, data: Any, index: Any) -> Any:
        return self.builder.load(self._address(data, index), align=4)

    def store(self, value: Any, data: Any, index: Any) -> None:
        self.builder.store(value, self._address(data, index), align=4)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        kind = ir.FunctionType(self.type, [self.type] * 3)
        return self.builder.call(self._function(kind, f"llvm.fma.v{self.width}f32"), [a, b, c])

    def sum(self, value: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_FLOAT, self.type])
        add = self._function(kind, f"llvm.vector.reduce.fadd.v{self.width}f32")
        return self.builder.call(add, [_FLOAT(0.0), value], fastmath=("reassoc",))

    def spread(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.type, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, _INT32(0))
        first = ir.Constant(ir.VectorType(_INT32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(one, undefined, first)

    def _address(self, data: Any, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [index]), self.type.as_pointer())

    def _function(self, kind: Any, name: str) -> Any:
        return cgutils.get_or_insert_function(self.builder.module, kind, name)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def dots(typing_context: Any, queries: Any, keys: Any, out: Any, length: Any, width: Any) -> Any:
    """``out[q, k] = queries[q] . keys[k]``, rows of ``length``; unrolled over all of it.

    ``queries`` and ``keys``: (array, first, row to row, rows); ``out``: (array, first, row to row).
    """
    rows_q, rows_k, n, w = _constants(queries[3], keys[3], length, width)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder, w)
        q_data, q_row = _rows(context, builder, signature.args[0], arguments[0])
        k_data, k_row = _rows(context, builder, signature.args[1], arguments[1])
        out_data, out_row = _rows(context, builder, signature.args[2], arguments[2])
        sums = [[vectors.zero] * rows_k for _ in range(rows_q)]
        for d in range(0, n, w):
            k = [vectors.load(k_data, k_row(r, d)) for r in range(rows_k)]
            for i in range(rows_q):
                q = vectors.load(q_data, q_row(i, d))
                sums[i] = [vectors.multiply_add(q, k[r], sums[i][r]) for r in range(rows_k)]
        for i in range(rows_q):
            for r in range(rows_k):
                builder.store(vectors.sum(sums[i][r]), builder.gep(out_data, [out_row(i, r)]))
        return context.get_dummy_value()

    return types.void(queries, keys, out, length, width), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def add_weighted(
    typing_context: Any,
    sums: Any,
    weights: Any,
    values: Any,
    count: Any,
    length: Any,
    width: Any,
) -> Any:
    """``sums[i] += weights[i, t] * values[t]`` over ``count`` tokens ``t``, rows of ``length``.

    ``sums``: (array, first, row to row, rows), kept in registers throughout; ``weights`` and
    ``values``: (array, first, row to row).
    """
    rows, n, w = _constants(sums[3], length, width)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder, w)
        sum_data, sum_row = _rows(context, builder, signature.args[0], arguments[0])
        weight_data, weight_row = _rows(context, builder, signature.args[1], arguments[1])
        value_data, value_row = _rows(context, builder, signature.args[2], arguments[2])
        places = [(i, d) for i in range(rows) for d in range(0, n, w)]
        before = [vectors.load(sum_data, sum_row(*place)) for place in places]
        entry = builder.block
        loop = builder.append_basic_block("tokens")
        done = builder.append_basic_block("done")
        last = context.cast(builder, arguments[3], signature.args[3], types.int64)
        builder.branch(loop)
        builder.position_at_end(loop)
        t = builder.phi(_INT64)
        t.add_incoming(_INT64(0), entry)
        now = [builder.phi(vectors.type) for _ in places]
        for phi, start in zip(now, before, strict=True):
            phi.add_incoming(start, entry)
        value = {d: vectors.load(value_data, value_row(t, d)) for d in range(0, n, w)}
        weight = [
            vectors.spread(builder.load(builder.gep(weight_data, [weight_row(i, t)])))
            for i in range(rows)
        ]
        after = [
            vectors.multiply_add(weight[i], value[d], phi)
            for (i, d), phi in zip(places, now, strict=True)
        ]
        following = builder.add(t, _INT64(1))
        for phi, new in zip([t, *now], [following, *after], strict=True):
            phi.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, last), loop, done)
        builder.position_at_end(done)
        for place, result in zip(places, after, strict=True):
            vectors.store(result, sum_data, sum_row(*place))
        return context.get_dummy_value()

    return types.void(sums, weights, values, count, length, width), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line that holds ``array[index]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # To read (0), keep in all cache levels (3), data (1).
        builder.call(function, [address, _INT32(0), _INT32(3), _INT32(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bits are those of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), generate


def _constants(*literals: Any) -> tuple[int, ...]:
    if not all(isinstance(x, types.IntegerLiteral) for x in literals):
        raise TypingError("sizes that unroll must be constants of the kernel")
    return tuple(x.literal_value for x in literals)


def _rows(context: Any, builder: Any, kind: Any, matrix: Any) -> tuple[Any, Any]:
    """The data pointer of a matrix, and a function from (row, column) to an element's index."""
    part = [builder.extract_value(matrix, i) for i in range(3)]
    data = context.make_array(kind[0])(context, builder, part[0]).data
    first = context.cast(builder, part[1], kind[1], types.int64)
    stride = context.cast(builder, part[2], kind[2], types.int64)

    def index(row: Any, column: Any) -> Any:
        row, column = (_INT64(x) if isinstance(x, int) else x for x in (row, column))
        return builder.add(builder.add(first, builder.mul(row, stride)), column)

    return data, index
