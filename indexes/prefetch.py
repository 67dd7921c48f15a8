"""Have memory bring what compiled code reads next, while it works on something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reperio.extras import load

__all__ = ["prefetch"]

_core = load("numba.core.cgutils", extra="fast")
_types = load("numba.core.types", extra="fast")
_ir = load("llvmlite.ir", extra="fast")


def _compile(_: Any, array: Any, place: Any) -> tuple[Any, Callable[..., Any]]:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, values[0])
        byte, number = _ir.IntType(8).as_pointer(), _ir.IntType(32)
        kind = _ir.FunctionType(_ir.VoidType(), [byte, number, number, number])
        function = _core.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.bitcast(builder.gep(held.data, [values[1]]), byte)
        builder.call(function, [address, number(0), number(3), number(1)])  # to read, into every cache, data
        return context.get_dummy_value()

    return _types.void(array, place), emit


def _nothing(array: Any, place: Any) -> None:
    """Where numba is told not to compile (``NUMBA_DISABLE_JIT``)."""


prefetch: Callable[[Any, Any], None] = (
    _nothing
    if load("numba", extra="fast").config.DISABLE_JIT
    else load("numba.extending", extra="fast").intrinsic(_compile)
)
"""Ask for the line of memory with ``array[place]``, in compiled code only; a place beyond the array does no harm."""
