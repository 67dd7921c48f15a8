"""Filters as PostgreSQL over ``jsonb``: fixed fragments, every name and value a bound parameter.

A test of a value is guarded by CASE, which PostgreSQL evaluates in order, unlike AND: no cast meets another type.
Text compares by code point (collation ``C``), numbers as exact decimals: as Python compares them.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from reperio.errors import FilterError
from reperio.filters import And, Comparison, Contains, Exists, Filter, Membership, Not, Or, Plain, kind

_OPERATORS = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}

_AS = {
    "number": ("{0}::numeric", "{0}::numeric"),
    "string": ("({0} #>> '{{}}') COLLATE \"C\"", "{0}::text"),
    "boolean": ("{0}::boolean", "{0}::boolean"),
}
"""A ``jsonb`` scalar as a value of its kind, and a parameter of that kind."""

Clause = tuple[str, dict[str, Any]]


class _Parameters(dict[str, Any]):
    """Every name and value that the condition binds."""

    def bind(self, value: Any) -> str:
        """Its placeholder."""
        name = f"p{len(self)}"
        self[name] = value
        return f"%({name})s"


def compile_filter(condition: Filter) -> Clause:
    """An SQL condition on one row of ``documents`` and its parameters; true exactly where the filter matches."""
    parameters = _Parameters()
    return _compile(condition, parameters), parameters


def _compile(condition: Filter, bound: _Parameters) -> str:
    if isinstance(condition, And | Or):
        word = " AND " if isinstance(condition, And) else " OR "
        return f"({word.join(_compile(part, bound) for part in condition.parts)})"
    if isinstance(condition, Not):
        return f"(NOT {_compile(condition.part, bound)})"
    if isinstance(condition, Comparison | Membership | Contains | Exists):
        field = f"(fields -> {bound.bind(condition.field)}::text)"
        if isinstance(condition, Exists):
            return f"coalesce(jsonb_typeof({field}) <> 'null', false)"
        tests = _tests(condition, field, bound)
        cases = " ".join(f"WHEN '{kind}' THEN {test}" for kind, test in tests.items())
        return f"(CASE jsonb_typeof({field}) {cases} ELSE false END)" if tests else "false"
    raise FilterError(f"{type(condition).__name__} is not a known filter.", "Build filters from Field.")


def _tests(condition: Comparison | Membership | Contains, field: str, bound: _Parameters) -> dict[str, str]:
    """What to ask of the field, by the type that it has."""
    if isinstance(condition, Membership):
        of_kind = {k: [_exact(v) for v in condition.values if _kind(v) == k] for k in _AS}
        return {k: f"{_is(k, field)} = ANY({_of(k, values, bound)}[])" for k, values in of_kind.items() if values}
    k = _kind(condition.value)
    value = _of(k, _exact(condition.value), bound)
    if isinstance(condition, Comparison):
        return {k: f"{_is(k, field)} {_OPERATORS[condition.op]} {value}"}
    item = f"CASE jsonb_typeof(i) WHEN '{k}' THEN {_is(k, 'i')} = {value} ELSE false END"
    inside = {"array": f"EXISTS (SELECT FROM jsonb_array_elements({field}) AS i WHERE {item})"}
    return {**inside, "string": f"strpos({_is(k, field)}, {value}) > 0"} if k == "string" else inside


def _is(kind: str, value: str) -> str:
    return _AS[kind][0].format(value)


def _of(kind: str, value: Any, bound: _Parameters) -> str:
    return _AS[kind][1].format(bound.bind(value))


def _exact(value: Plain) -> Any:
    """Numbers as exact decimals; the rest as it is.

    Raises
    ------
    FilterError
        For text that no stored value can hold.
    """
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise FilterError(f"{value!r} holds a NUL or half a character, as no stored text does.", "Leave it out.")
    return Decimal(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _kind(value: Plain) -> str:
    return kind(value) or "string"
