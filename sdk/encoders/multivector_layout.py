"""How late-interaction checkpoints are read and written: the original ColBERT's, PyLate's, sentence-transformers'."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reperio import extras
from reperio.encoders.reading import ROLES, Expansion
from reperio.encoders.wholewords import WholeWords
from reperio.encoders.wordgate import WordGate
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.architectures import read_json
from reperio.models.checkpoint import weight_files
from reperio.models.inputs import Role
from reperio.models.modules import MODULES, read_modules
from reperio.models.projection import TokenProjection
from reperio.protocols import Spec
from reperio.registry import build

__all__ = ["Checkpoint", "ColbertLayout", "read_checkpoint", "write_modules"]

_OWN = "reperio.encoders.multivector_layout.ColbertLayout"
"""What `modules.json` names where a checkpoint does what sentence-transformers cannot; it refuses to load that."""

_PUNCTUATION = tuple(string.punctuation)
_PYLATE = {"query_prefix", "document_prefix", "do_query_expansion", "attend_to_expansion_tokens", "skiplist_words"}


@dataclass(frozen=True, slots=True)
class ColbertLayout:
    """What a late-interaction model expects around its texts, and which tokens have a vector.

    Attributes
    ----------
    markers
        For each role, a token of the tokenizer that stands after the first special token: ``[unused0]`` in ColBERT,
        ``"[Q] "`` in PyLate.
    prompts
        For each role, text before the text.
    lengths
        For each role, most tokens of a row, all counted; what the model reads where not given.
    expansion
        How short queries are filled up; their tokens have vectors too.
    skip
        Tokens that have no vector, as punctuation.
    skip_roles
        Where they have none.
    special
        Whether special tokens, the marker and the prompt have vectors.
    normalize
        Whether vectors have length 1.
    """

    markers: Mapping[Role, str] = field(default_factory=dict[Role, str])
    prompts: Mapping[Role, str] = field(default_factory=dict[Role, str])
    lengths: Mapping[Role, int] = field(default_factory=dict[Role, int])
    expansion: Expansion | None = None
    skip: tuple[str, ...] = ()
    skip_roles: tuple[Role, ...] = ("document",)
    special: bool = True
    normalize: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", tuple(self.skip))  # of a specification they are lists
        object.__setattr__(self, "skip_roles", tuple(self.skip_roles))
        named = {"markers": self.markers, "prompts": self.prompts, "lengths": self.lengths}
        for name, roles in {**named, "skip_roles": self.skip_roles}.items():
            strange = set(roles) - set(ROLES)
            if strange:
                raise ConfigurationError(f"{name} names the role {sorted(strange)[0]!r}.", "Use query and document.")
        if self.expansion is not None and not self.special:
            raise ConfigurationError("special is False, and expansion has vectors of its own.", "Leave one out.")

    @property
    def limits(self) -> dict[Role, int]:
        """Most tokens of a row for each role that has a limit of its own."""
        cut = self.expansion is not None and self.expansion.cuts
        return {**self.lengths, **({"query": self.expansion.length} if self.expansion is not None and cut else {})}

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        return {
            "type": "ColbertLayout",
            "markers": dict(self.markers),
            "prompts": dict(self.prompts),
            "lengths": dict(self.lengths),
            "expansion": None if self.expansion is None else dict(self.expansion.spec),
            "skip": list(self.skip),
            "skip_roles": list(self.skip_roles),
            "special": self.special,
            "normalize": self.normalize,
        }


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What lies in a folder.

    Attributes
    ----------
    model
        The folder of the transformers model.
    layout, projections, words, gate
        As `MultiVectorEncoder` takes them; none where the folder holds an ordinary model.
    """

    model: Path
    layout: ColbertLayout
    projections: tuple[TokenProjection, ...] = ()
    words: WholeWords | None = None
    gate: WordGate | None = None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder in any of the known layouts; of a model for another task, its model alone.

    Raises
    ------
    ConfigurationError
        For a file that cannot be read, or values that contradict each other.
    UnsupportedOperation
        If it holds a module that is not known here.
    """
    config = read_json(folder / "config.json")
    if (folder / MODULES).is_file():
        return _modules(folder)
    if "HF_ColBERT" in (config.get("architectures") or []):
        return _original(folder)
    return Checkpoint(folder, ColbertLayout())


# The original ColBERT: BERT and linear.weight in one file, artifact.metadata


def _original(folder: Path) -> Checkpoint:
    told = read_json(folder / "artifact.metadata")
    opened = extras.load("safetensors", extra="models").safe_open
    for file in weight_files(folder):
        with opened(str(file), "pt") as weights:
            if "linear.weight" in weights.keys():  # noqa: SIM118
                projection = TokenProjection.of(weights.get_tensor("linear.weight"))
                break
    else:
        raise ConfigurationError(f"{folder} has no linear.weight.", "The checkpoint is not a whole ColBERT.")
    if told.get("dim", projection.dim) != projection.dim:
        problem = f"{folder}: dim is {told['dim']} in artifact.metadata, and linear.weight gives {projection.dim}."
        raise ConfigurationError(problem, "Fetch the checkpoint again.")
    layout = ColbertLayout(
        markers={
            "query": told.get("query_token_id") or "[unused0]",
            "document": told.get("doc_token_id") or "[unused1]",
        },
        lengths={"document": told.get("doc_maxlen") or 220},
        expansion=Expansion(told.get("query_maxlen") or 32, bool(told.get("attend_to_mask_tokens"))),
        skip=_PUNCTUATION if told.get("mask_punctuation", True) else (),
    )
    return Checkpoint(folder, layout, (projection,))


# modules.json: PyLate and sentence-transformers


def _modules(folder: Path) -> Checkpoint:
    settings = read_json(folder / "config_sentence_transformers.json")
    late = settings.get("model_type") in ("ColBERT", "MultiVectorEncoder") or bool(_PYLATE & settings.keys())
    model, own, told = folder, dict[str, Any](), dict[str, Any]()
    projections, mask, normalize, gate = list[Any](), dict[str, Any](), False, None
    for module in read_modules(folder):
        place, name = module.path, module.name
        if name == "Transformer":
            model, told = place, _transformer(place)
        elif not late:
            continue  # pooling and what follows it make one vector of a text
        elif name == "Dense":
            projections.append(TokenProjection(folder=place))
        elif name == "MultiVectorMask":
            mask = _mask(place)
        elif name == "Normalize":
            normalize = True
        elif module.type == _OWN:
            own = read_json(place / "config.json")
            gate = WordGate(folder=place / "gate") if (place / "gate").is_dir() else None
        else:
            raise UnsupportedOperation(f"{folder} has the module {module.type!r}.", "Use a model without it.")
    native = settings.get("model_type") == "MultiVectorEncoder"
    layout = ColbertLayout(
        markers={role: settings[f"{role}_prefix"] for role in ROLES if settings.get(f"{role}_prefix")},
        prompts=_prompts(settings),
        lengths=_lengths(told, settings, pylate=late and not native),
        expansion=(_expansion(told) if native else _pylate_expansion(settings)) if late else None,
        skip=tuple(mask.get("skiplist_words") or ()) if native else _pylate_skip(settings) if late else (),
        skip_roles=tuple(mask.get("skiplist_tasks") or ("document",)),
        special=own.get("special", True),
        normalize=normalize or not native,
    )
    words = None if own.get("words") is None else build(own["words"])
    return Checkpoint(model, layout, tuple(projections), words, gate)


def _transformer(place: Path) -> dict[str, Any]:
    files = sorted(place.glob("sentence_*_config.json"))
    told: dict[str, Any] = read_json(files[0]) if files else {}
    if told.get("do_lower_case"):
        raise UnsupportedOperation(f"{place}: do_lower_case is true.", "Use a tokenizer that lowers case itself.")
    if told.get("transformer_task", "feature-extraction") not in ("feature-extraction", "fill-mask"):
        raise UnsupportedOperation(f"{place}: transformer_task is {told['transformer_task']!r}.", "Use a text model.")
    return told


def _mask(place: Path) -> dict[str, Any]:
    mask: dict[str, Any] = read_json(place / "config.json")
    if mask.get("keep_only_token_ids"):
        raise UnsupportedOperation(f"{place}: keep_only_token_ids is set, as for images.", "Use a text model.")
    return mask


def _prompts(settings: Mapping[str, Any]) -> dict[Role, str]:
    """Prompts by role, without the marker that stands before them anyway."""
    saved: dict[str, str] = settings.get("prompts") or {}
    found: dict[Role, str] = {"query": saved.get("query") or ""}
    found["document"] = next((saved[name] for name in ("document", "passage", "corpus") if saved.get(name)), "")
    return {role: rest for role, text in found.items() if (rest := text.removeprefix(_prefix(settings, role)))}


def _prefix(settings: Mapping[str, Any], role: Role) -> str:
    return settings.get(f"{role}_prefix") or ""


def _lengths(told: Mapping[str, Any], settings: Mapping[str, Any], *, pylate: bool) -> dict[Role, int]:
    defaults: dict[Role, int | None] = {"query": 32, "document": 180} if pylate else {}
    source = settings if pylate else told
    asked: dict[Role, int | None] = {
        role: source.get(f"{role}_length") or defaults.get(role) or told.get("max_seq_length") for role in ROLES
    }
    return {role: length for role, length in asked.items() if length}


def _pylate_expansion(settings: Mapping[str, Any]) -> Expansion | None:
    if settings.get("do_query_expansion") is False:
        return None
    return Expansion(settings.get("query_length") or 32, bool(settings.get("attend_to_expansion_tokens")))


def _pylate_skip(settings: Mapping[str, Any]) -> tuple[str, ...]:
    skip = settings.get("skiplist_words")
    return _PUNCTUATION if skip is None else tuple(skip)


def _expansion(told: Mapping[str, Any]) -> Expansion | None:
    how = told.get("query_expansion")
    if how is None:
        return None
    return Expansion(how["length"], bool(how.get("attend")), how.get("token"), cuts=how.get("strategy") == "fixed")


def write_modules(folder: Path, found: Checkpoint) -> None:
    """Write all but the model itself, which is in the folder, in the layout of sentence-transformers.

    Parameters
    ----------
    folder
        Holds the transformers model and its tokenizer.
    found
        What to write; its ``model`` is not read.
    """
    layout = found.layout
    modules = [("sentence_transformers.base.modules.transformer.Transformer", "")]
    for projection in found.projections:
        modules.append(("sentence_transformers.base.modules.dense.Dense", f"{len(modules)}_Dense"))
        copy.copy(projection).save(folder / modules[-1][1])  # where the layer itself was saved stays as it is
    base = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
    modules.append((base, f"{len(modules)}_MultiVectorMask"))
    skip = {"skiplist_words": list(layout.skip), "skiplist_tasks": list(layout.skip_roles)}
    _write(folder / modules[-1][1] / "config.json", {**skip, "keep_only_token_ids": None})
    if layout.normalize:
        modules.append(("sentence_transformers.base.modules.normalize.Normalize", f"{len(modules)}_Normalize"))
        names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        _write(folder / modules[-1][1] / "config.json", names)
    if found.words is not None or found.gate is not None or not layout.special:
        modules.append((_OWN, f"{len(modules)}_ColbertLayout"))
        words = None if found.words is None else dict(found.words.spec)
        place = folder / modules[-1][1]
        _write(place / "config.json", {"special": layout.special, "words": words})
        if found.gate is not None:
            copy.copy(found.gate).save(place / "gate")
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)]
    _write(folder / MODULES, listed)
    _write(folder / "sentence_bert_config.json", _told(layout))
    markers = {f"{role}_prefix": marker for role, marker in layout.markers.items()}
    general = {"model_type": "MultiVectorEncoder", "prompts": dict(layout.prompts), "similarity_fn_name": "maxsim"}
    _write(folder / "config_sentence_transformers.json", {**general, **markers})


def _told(layout: ColbertLayout) -> dict[str, Any]:
    """What the Transformer module is told."""
    lengths = {f"{role}_length": length for role, length in layout.lengths.items()}
    if layout.expansion is None:
        return {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings", **lengths}
    how = layout.expansion
    if how.cuts:
        lengths.pop("query_length", None)
    strategy = "fixed" if how.cuts else "min"
    expansion = {"strategy": strategy, "attend": how.seen, "token": how.token, "length": how.length}
    return {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        **lengths,
        "query_expansion": expansion,
    }


def _write(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
