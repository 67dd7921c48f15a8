"""Filters over metadata: a typed tree, never a string.

>>> recent = (Field("year") >= 2020) & Field("lang").in_(["en", "de"])
>>> recent.matches({"year": 2024, "lang": "en"}), recent.matches({"lang": "en"})
(True, False)
>>> parse("year >= 2020 and lang in ['en', 'de']") == recent
True

A comparison with a field that a document lacks is false; ``~`` is the plain complement.
Dates compare as ISO 8601 text in UTC, the form in which metadata keeps them.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, TypeAlias, cast

from reperio.errors import FilterError
from reperio.types import Scalar, Value

Operator: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">="]
Plain: TypeAlias = str | int | float | bool

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def plain(value: Scalar) -> Plain:
    """The form in which metadata keeps a scalar: dates become ISO 8601 text, in UTC where they have a zone.

    Raises
    ------
    FilterError
        If ``value`` is not a string, number, boolean or date.
    """
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(cast("object", value), int) and not -(2**63) <= cast("int", value) < 2**63:
        raise FilterError(f"{value} is beyond 64 bits, as no stored number is.", "Compare with a smaller one.")
    if isinstance(cast("object", value), str | bool | int | float) and value == value:
        return value
    raise FilterError(f"A filter cannot compare with {value!r}.", "Use a string, number, boolean or date.")


def kind(value: object) -> str | None:
    """``"boolean"``, ``"number"``, ``"string"``, ``"list"`` or ``"object"``; None for null."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str | date):
        return "string"
    return "object" if isinstance(value, Mapping) else "list"


class Filter:
    """A condition on one document's metadata. Combine with ``&``, ``|`` and ``~``."""

    __slots__ = ()

    def __and__(self, other: Filter) -> Filter:
        return And((*_parts(self, And), *_parts(other, And)))

    def __or__(self, other: Filter) -> Filter:
        return Or((*_parts(self, Or), *_parts(other, Or)))

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> bool:
        raise FilterError(f"A filter has no truth value: {self}.", "Combine with & | ~ in place of and, or, not.")

    def matches(self, metadata: Mapping[str, Value]) -> bool:
        """Whether a document with this metadata passes: the meaning that every backend must reproduce."""
        raise TypeError(f"{type(self).__name__} does not say what it matches")

    def leaves(self) -> Iterable[Comparison | Membership | Contains | Exists]:
        """Every condition on a single field."""
        raise TypeError(f"{type(self).__name__} does not list its leaves")


@dataclass(frozen=True, slots=True)
class Comparison(Filter):
    """``field op value``."""

    field: str
    op: Operator
    value: Plain

    def matches(self, metadata: Mapping[str, Value]) -> bool:
        found = metadata.get(self.field)
        found = plain(found) if isinstance(found, date) else found
        return kind(found) == kind(self.value) and _COMPARE[self.op](found, self.value)

    def leaves(self) -> Iterable[Comparison]:
        return (self,)

    def __str__(self) -> str:
        return f"{self.field} {self.op} {self.value!r}"


@dataclass(frozen=True, slots=True)
class Membership(Filter):
    """``field`` is one of ``values``."""

    field: str
    values: tuple[Plain, ...]

    def matches(self, metadata: Mapping[str, Value]) -> bool:
        return any(Comparison(self.field, "==", value).matches(metadata) for value in self.values)

    def leaves(self) -> Iterable[Membership]:
        return (self,)

    def __str__(self) -> str:
        return f"{self.field} in {list(self.values)!r}"


@dataclass(frozen=True, slots=True)
class Contains(Filter):
    """A list ``field`` holds ``value``, or a string ``field`` has it as a part."""

    field: str
    value: Plain

    def matches(self, metadata: Mapping[str, Value]) -> bool:
        found = metadata.get(self.field)
        if isinstance(found, str):
            return isinstance(self.value, str) and self.value in found
        if kind(found) != "list":
            return False
        return any(kind(x) == kind(self.value) and x == self.value for x in cast("Sequence[Value]", found))

    def leaves(self) -> Iterable[Contains]:
        return (self,)

    def __str__(self) -> str:
        return f"{self.value!r} in {self.field}"


@dataclass(frozen=True, slots=True)
class Exists(Filter):
    """``field`` is there and not null."""

    field: str

    def matches(self, metadata: Mapping[str, Value]) -> bool:
        return metadata.get(self.field) is not None

    def leaves(self) -> Iterable[Exists]:
        return (self,)

    def __str__(self) -> str:
        return f"{self.field} exists"


@dataclass(frozen=True, slots=True)
class And(Filter):
    """All of ``parts``."""

    parts: tuple[Filter, ...]

    def matches(self, metadata: Mapping[str, Value]) -> bool:
        return all(part.matches(metadata) for part in self.parts)

    def leaves(self) -> Iterable[Comparison | Membership | Contains | Exists]:
        return tuple(leaf for part in self.parts for leaf in part.leaves())

    def __str__(self) -> str:
        return "(" + " and ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """Any of ``parts``."""

    parts: tuple[Filter, ...]

    def matches(self, metadata: Mapping[str, Value]) -> bool:
        return any(part.matches(metadata) for part in self.parts)

    def leaves(self) -> Iterable[Comparison | Membership | Contains | Exists]:
        return tuple(leaf for part in self.parts for leaf in part.leaves())

    def __str__(self) -> str:
        return "(" + " or ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """Not ``part``."""

    part: Filter

    def matches(self, metadata: Mapping[str, Value]) -> bool:
        return not self.part.matches(metadata)

    def leaves(self) -> Iterable[Comparison | Membership | Contains | Exists]:
        return self.part.leaves()

    def __str__(self) -> str:
        return f"not {self.part}"


def _parts(condition: Filter, kind: type[And | Or]) -> tuple[Filter, ...]:
    """A chain of the same word is one node, however long."""
    return condition.parts if isinstance(condition, kind) else (condition,)


class Field:
    """A metadata field, to be compared.

    Parameters
    ----------
    name
        The metadata key.
    """

    __slots__ = ("name",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        if not isinstance(cast("object", name), str) or not name:
            raise FilterError(f"A field name cannot be {name!r}.", "Use the metadata key, a string.")
        self.name = name

    def __eq__(self, value: Scalar) -> Filter:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._compare("==", value)

    def __ne__(self, value: Scalar) -> Filter:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._compare("!=", value)

    def __lt__(self, value: Scalar) -> Filter:
        return self._compare("<", value)

    def __le__(self, value: Scalar) -> Filter:
        return self._compare("<=", value)

    def __gt__(self, value: Scalar) -> Filter:
        return self._compare(">", value)

    def __ge__(self, value: Scalar) -> Filter:
        return self._compare(">=", value)

    def in_(self, values: Iterable[Scalar]) -> Filter:
        """The field is one of ``values``."""
        if isinstance(values, str):
            raise FilterError(f"in_({values!r}) was given a bare string.", "Give a list of values.")
        return Membership(self.name, tuple(plain(value) for value in values))

    def contains(self, value: Scalar) -> Filter:
        """A list field holds ``value``, or a string field has it as a part."""
        return Contains(self.name, plain(value))

    def exists(self) -> Filter:
        """The field is there and not null."""
        return Exists(self.name)

    def _compare(self, op: Operator, value: Scalar) -> Filter:
        return Comparison(self.name, op, plain(value))


def check(condition: Filter, fields: Mapping[str, Iterable[str]]) -> None:
    """Refuse a filter on an unknown field, or with a value of a type the field never had.

    Parameters
    ----------
    condition
        The filter.
    fields
        Every known field and the kinds of value it has had.

    Raises
    ------
    FilterError
        Naming the field, the value and what would fit.
    """
    for leaf in condition.leaves():
        if leaf.field not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise FilterError(f"No document has a field {leaf.field!r}.", f"Known fields: {known}.")
        kinds = set(fields[leaf.field])
        if isinstance(leaf, Contains):
            if not kinds & {"list", "string"} or ("list" not in kinds and kind(leaf.value) != "string"):
                raise FilterError(f"{leaf}: the field holds {_listed(kinds)}.", "contains() needs a list or string.")
        elif not isinstance(leaf, Exists):
            for value in leaf.values if isinstance(leaf, Membership) else (leaf.value,):
                if kind(value) not in kinds:
                    raise FilterError(
                        f"{leaf}: {value!r} is a {kind(value)}, the field holds {_listed(kinds)}.",
                        "Compare with a value of that type.",
                    )


def _listed(kinds: Iterable[str]) -> str:
    return " or ".join(f"{k}s" for k in sorted(kinds)) or "only nulls"


def to_json(condition: Filter) -> dict[str, Any]:
    """A JSON object that `from_json` reads back."""
    if isinstance(condition, And | Or):
        return {"op": "and" if isinstance(condition, And) else "or", "parts": [to_json(p) for p in condition.parts]}
    if isinstance(condition, Not):
        return {"op": "not", "parts": [to_json(condition.part)]}
    if isinstance(condition, Membership):
        return {"op": "in", "field": condition.field, "values": list(condition.values)}
    if isinstance(condition, Contains):
        return {"op": "contains", "field": condition.field, "value": condition.value}
    if isinstance(condition, Exists):
        return {"op": "exists", "field": condition.field}
    if isinstance(condition, Comparison):
        return {"op": condition.op, "field": condition.field, "value": condition.value}
    raise FilterError(f"{type(condition).__name__} is not a known filter.", "Build filters from Field.")


def from_json(data: Mapping[str, Any]) -> Filter:
    """Inverse of `to_json`; raises `FilterError` on anything else."""
    try:
        op: str = data["op"]
        if op in ("and", "or", "not"):
            parts = tuple(from_json(part) for part in data["parts"])
            return Not(parts[0]) if op == "not" else And(parts) if op == "and" else Or(parts)
        field = Field(data["field"])
        if op == "in":
            return field.in_(data["values"])
        if op == "contains":
            return field.contains(data["value"])
        if op == "exists":
            return field.exists()
        return Comparison(field.name, cast("Operator", {o: o for o in _COMPARE}[op]), plain(data["value"]))
    except (KeyError, IndexError, TypeError) as error:
        raise FilterError(f"{data!r} is not a filter.", "See reperio.filters.to_json for the form.") from error


_AST: dict[type[ast.cmpop], Operator] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


def parse(text: str) -> Filter:
    """Read a filter as a person types it on a command line; nothing is executed.

    ``year >= 2020 and not lang in ['en', 'de'] or 'physics' in tags``

    Raises
    ------
    FilterError
        If ``text`` is anything but comparisons of names with constants joined by and, or, not.
    """
    try:
        return _read(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise FilterError(f"{text!r} is not a filter: {error.msg}.", "Write, for example: year >= 2020") from error


def _read(node: ast.expr) -> Filter:
    if isinstance(node, ast.BoolOp):
        parts = tuple(_read(value) for value in node.values)
        return And(parts) if isinstance(node.op, ast.And) else Or(parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return Not(_read(node.operand))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, op, right = node.left, node.ops[0], node.comparators[0]
        if isinstance(op, ast.In | ast.NotIn):
            found = (
                Field(left.id).in_(_constant(right))
                if isinstance(left, ast.Name)
                else Field(_name(right)).contains(_constant(left))
            )
            return Not(found) if isinstance(op, ast.NotIn) else found
        if type(op) in _AST:
            return Comparison(_name(left), _AST[type(op)], plain(_constant(right)))
    raise FilterError(f"{ast.unparse(node)!r} is not a condition.", "Write, for example: year >= 2020")


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    raise FilterError(f"{ast.unparse(node)!r} is not a field name.", "Write the field on the left, bare.")


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise FilterError(f"{ast.unparse(node)!r} is not a constant.", "Compare with a literal value.") from error
