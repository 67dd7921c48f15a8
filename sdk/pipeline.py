"""Stages, and `>>` that joins them.

A stage maps a batch to a batch of the same length and order. The type checker rejects a composition that does
not fit; `Pipeline` rejects it again when it is built, for those who do not run one.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from reperio import meter
from reperio.artifacts import replace_text
from reperio.errors import CompositionError, ConfigurationError, InvalidInput, NewerFormat, UnsupportedOperation
from reperio.protocols import Spec, Stage
from reperio.registry import build

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
X = TypeVar("X")
Y = TypeVar("Y")

FORMAT = 1
"""Version of a saved pipeline."""


class Step(Generic[A, B]):
    """Base of every stage of this package: adds ``>>``, a name and an asynchronous call.

    A subclass defines ``__call__`` and, if it can be saved, ``spec``.
    """

    def __call__(self, batch: Sequence[A], /) -> Sequence[B]:
        raise TypeError(f"{type(self).__name__} defines no __call__")

    async def acall(self, batch: Sequence[A], /) -> Sequence[B]:
        """Like calling, without blocking the event loop: runs in a worker thread."""
        return await asyncio.to_thread(self, batch)

    @property
    def name(self) -> str:
        """What reports and diagrams call this stage."""
        return type(self).__name__

    @property
    def spec(self) -> Spec:
        """How to build this stage again.

        Raises
        ------
        UnsupportedOperation
            If the stage holds what no configuration can name (documents, a function).
        """
        raise UnsupportedOperation(
            f"{self.name} cannot be saved.", "Build it in code, or save a collection and use it."
        )

    def __rshift__(self, after: Stage[B, C]) -> Pipeline[A, C]:
        return Pipeline.of(self) >> after


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did in one run.

    Attributes
    ----------
    name
        The stage.
    seconds
        Wall time.
    inputs, outputs
        Items in and out.
    counts
        What the stage counted: ``tokens``, ``texts``, ``truncated``, ...
    """

    name: str
    seconds: float
    inputs: int
    outputs: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunReport(Generic[B]):
    """Outputs of one run, and a report for each stage."""

    outputs: Sequence[B]
    stages: tuple[StageReport, ...]

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def __str__(self) -> str:
        lines = [f"{'stage':<28}{'ms':>10}{'in':>7}{'out':>7}  counts"]
        for s in self.stages:
            counts = ", ".join(f"{name} {n:,}" for name, n in sorted(s.counts.items()))
            lines.append(f"{s.name:<28}{s.seconds * 1e3:>10.2f}{s.inputs:>7}{s.outputs:>7}  {counts}".rstrip())
        return "\n".join(lines)


class Pipeline(Step[A, B]):
    """Stages run in order: ``Pipeline[A, B]`` maps a batch of ``A`` to a batch of ``B``.

    Parameters
    ----------
    stages
        At least one; the output of each is the input of the next.

    Raises
    ------
    CompositionError
        Naming the two stages that do not fit.
    """

    def __init__(self, stages: Sequence[Stage[Any, Any]]) -> None:
        if not stages:
            raise ConfigurationError("A pipeline needs at least one stage.", "Give it one.")
        for before, after in pairwise(stages):
            _check_fit(before, after)
        self.stages = tuple(stages)

    @staticmethod
    def of(stage: Stage[X, Y]) -> Pipeline[X, Y]:
        """A pipeline of one stage; any callable on batches will do."""
        return stage if isinstance(stage, Pipeline) else Pipeline((stage,))

    def __rshift__(self, after: Stage[B, C]) -> Pipeline[A, C]:
        return Pipeline((*self.stages, *Pipeline.of(after).stages))

    def __call__(self, batch: Sequence[A], /) -> Sequence[B]:
        return self.run(batch).outputs

    async def acall(self, batch: Sequence[A], /) -> Sequence[B]:
        """Run without blocking the event loop; stages with an ``acall`` of their own are awaited."""
        return (await self.arun(batch)).outputs

    def run(self, batch: Sequence[A], /) -> RunReport[B]:
        """Run every stage; returns the outputs with wall time, tokens and counts of each stage."""
        items: Sequence[Any] = _checked_batch(batch)
        reports: list[StageReport] = []
        for stage in self.stages:
            with meter.measure() as counts:
                start = time.perf_counter()
                outputs = stage(items)
                seconds = time.perf_counter() - start
            reports.append(_report(stage, items, outputs, seconds, counts))
            items = outputs
        return RunReport(items, tuple(reports))

    async def arun(self, batch: Sequence[A], /) -> RunReport[B]:
        """`run` for an event loop."""
        items: Sequence[Any] = _checked_batch(batch)
        reports: list[StageReport] = []
        for stage in self.stages:
            with meter.measure() as counts:
                start = time.perf_counter()
                acall = getattr(stage, "acall", None)
                outputs = await (acall(items) if acall else asyncio.to_thread(stage, items))
                seconds = time.perf_counter() - start
            reports.append(_report(stage, items, outputs, seconds, counts))
            items = outputs
        return RunReport(items, tuple(reports))

    @property
    def spec(self) -> Spec:
        return {"type": "Pipeline", "stages": [_spec_of(stage) for stage in self.stages]}

    def save(self, path: Path | str) -> None:
        """Write the pipeline as JSON, or YAML where ``path`` ends in .yaml or .yml: names and numbers, no code."""
        target = Path(path)
        data = {"format": FORMAT, **self.spec}
        text: str = yaml.safe_dump(data, sort_keys=False) if _is_yaml(target) else json.dumps(data, indent=1)
        replace_text(target, text)

    @staticmethod
    def load(path: Path | str) -> Pipeline[Any, Any]:
        """Read what `save` wrote; every name must be registered and every value of its type.

        Raises
        ------
        ConfigurationError, NewerFormat
        """
        source = Path(path)
        try:
            text = source.read_text(encoding="utf-8")
            data = yaml.safe_load(text) if _is_yaml(source) else json.loads(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigurationError(f"{source} cannot be read: {error}.", "Mend the file.") from error
        if not isinstance(data, dict):
            raise ConfigurationError(f"{source} holds no pipeline.", "See Pipeline.save for the form.")
        fields = cast("dict[str, Any]", data)
        version = fields.pop("format", FORMAT)
        if version > FORMAT:
            raise NewerFormat(f"{source} has format {version}; this release reads {FORMAT}.", "Upgrade reperio.")
        if fields.get("type") != "Pipeline":
            raise ConfigurationError(f"{source} holds a {fields.get('type')!r}.", "Give a saved pipeline.")
        return cast("Pipeline[Any, Any]", build(fields))

    def diagram(self) -> str:
        """The stages and what flows between them, one a line."""
        lines = [_label(stage_types(self.stages[0])[0])]
        for stage in self.stages:
            lines += [f"  │ {_name_of(stage)}", "  ▼", _label(stage_types(stage)[1])]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.diagram()


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _checked_batch(batch: Sequence[A]) -> Sequence[A]:
    if isinstance(batch, str):
        raise InvalidInput(f"The batch is the bare string {batch[:40]!r}.", "Give a list: pipeline([text]).")
    return batch


def _report(
    stage: object, items: Sequence[Any], outputs: Sequence[Any], seconds: float, counts: Mapping[str, int]
) -> StageReport:
    name = _name_of(stage)
    if len(outputs) != len(items):
        problem = f"{name} was given {len(items)} items and returned {len(outputs)}."
        raise CompositionError(problem, "A stage returns one output for each input.")
    return StageReport(name, seconds, len(items), len(outputs), dict(counts))


def _name_of(stage: object) -> str:
    name = getattr(stage, "name", None)
    return name if isinstance(name, str) else getattr(stage, "__name__", type(stage).__name__)


def _spec_of(stage: object) -> Spec:
    found = getattr(stage, "spec", None)
    if not isinstance(found, Mapping):
        raise UnsupportedOperation(f"{_name_of(stage)} cannot be saved.", "Give it a `spec` and register its name.")
    return cast("Spec", found)


def stage_types(stage: object) -> tuple[Any, Any]:
    """What a stage takes and gives, as far as its annotations say; `typing.Any` where they do not."""
    if isinstance(stage, Pipeline):
        stages: Sequence[object] = cast("Any", stage).stages
        return stage_types(stages[0])[0], stage_types(stages[-1])[1]
    for cls in type(stage).__mro__:
        for base in getattr(cls, "__orig_bases__", ()):
            if get_origin(base) is Step and not any(isinstance(a, TypeVar) for a in get_args(base)):
                taken, given = get_args(base)
                return taken, given
    return _annotated(stage if inspect.isfunction(stage) else type(stage).__call__)


def _annotated(function: Callable[..., Any]) -> tuple[Any, Any]:
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        return Any, Any
    given = _item(hints.pop("return", None))
    return (_item(next(iter(hints.values()))) if hints else Any), given


def _item(hint: Any) -> Any:
    arguments = get_args(hint)
    return arguments[0] if len(arguments) == 1 and not isinstance(arguments[0], TypeVar) else Any


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fits(given: Any, wanted: Any) -> bool:
    if given is Any or wanted is Any:
        return True
    classes = tuple(get_origin(w) or w for w in _members(wanted))
    try:
        return all(issubclass(get_origin(g) or g, classes) for g in _members(given))
    except TypeError:  # a type that only a checker can compare, such as a TypedDict
        return True


def _check_fit(before: object, after: object) -> None:
    given, wanted = stage_types(before)[1], stage_types(after)[0]
    if not _fits(given, wanted):
        raise CompositionError(
            f"{_name_of(before)} gives {_label(given)}, but {_name_of(after)} takes {_label(wanted)}.",
            "Put a stage between them that turns one into the other, or change their order.",
        )


def _label(kind: Any) -> str:
    return " | ".join(getattr(m, "__name__", str(m)) for m in _members(kind))
