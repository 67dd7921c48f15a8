"""Filters as SQL: fixed fragments, every name and value a bound parameter."""

from __future__ import annotations

import json
from collections.abc import Sequence

from reperio.errors import FilterError
from reperio.filters import And, Comparison, Contains, Exists, Filter, Membership, Not, Or, Plain, kind

_JSON_TYPES = {"number": "('integer', 'real')", "string": "('text')", "boolean": "('true', 'false')"}

_OPERATORS = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}

Clause = tuple[str, list[Plain]]


def compile_filter(condition: Filter) -> Clause:
    """An SQL condition on one row of ``documents`` and its parameters; true exactly where the filter matches."""
    if isinstance(condition, And | Or):
        parts = [compile_filter(part) for part in condition.parts]
        word = "AND" if isinstance(condition, And) else "OR"
        return _joined([sql for sql, _ in parts], word), [p for _, values in parts for p in values]
    if isinstance(condition, Not):
        sql, values = compile_filter(condition.part)
        return f"NOT {sql}", values
    if isinstance(condition, Comparison):
        test = f"e.type IN {_JSON_TYPES[_kind(condition.value)]} AND e.value {_OPERATORS[condition.op]} ?"
        return _on_field(condition.field, test, [condition.value])
    if isinstance(condition, Membership):
        of_kind = {k: [v for v in condition.values if _kind(v) == k] for k in _JSON_TYPES}
        used = {k: values for k, values in of_kind.items() if values}
        tests = [f"(e.type IN {_JSON_TYPES[k]} AND e.value IN (SELECT value FROM json_each(?)))" for k in used]
        return _on_field(condition.field, f"({' OR '.join(tests) or '0'})", [json.dumps(v) for v in used.values()])
    if isinstance(condition, Contains):
        item = f"SELECT 1 FROM json_each(e.value) AS i WHERE i.type IN {_JSON_TYPES[_kind(condition.value)]}"
        test = f"(CASE e.type WHEN 'array' THEN EXISTS ({item} AND i.value = ?)"
        if isinstance(condition.value, str):
            return _on_field(
                condition.field, f"{test} WHEN 'text' THEN instr(e.value, ?) > 0 END)", [condition.value] * 2
            )
        return _on_field(condition.field, f"{test} END)", [condition.value])
    if isinstance(condition, Exists):
        return _on_field(condition.field, "e.type <> 'null'", [])
    raise FilterError(f"{type(condition).__name__} is not a known filter.", "Build filters from Field.")


def _joined(parts: Sequence[str], word: str) -> str:
    """A balanced tree: SQLite bounds the depth of an expression."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_joined(parts[:middle], word)} {word} {_joined(parts[middle:], word)})"


def _on_field(field: str, test: str, values: Sequence[Plain]) -> Clause:
    return f"EXISTS (SELECT 1 FROM json_each(metadata) AS e WHERE e.key = ? AND {test})", [field, *values]


def _kind(value: Plain) -> str:
    return kind(value) or "string"
