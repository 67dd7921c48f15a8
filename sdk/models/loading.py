"""A transformers model and its tokenizer from a folder: safetensors only, every weight there, nothing made up."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reperio import extras
from reperio.errors import ConfigurationError, NotFound
from reperio.models.architectures import stand_in
from reperio.models.checkpoint import adapter_settings, weight_files

__all__ = [
    "QUANTIZED",
    "check_code",
    "check_commit",
    "find_layers",
    "load_adapters",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
]

QUANTIZED = ("int8", "int4")

_quiet = threading.Lock()
_COMMIT = re.compile("[0-9a-f]{40}")
# What a checkpoint without a task's head may lack: it is not read unless that head is asked for.
_UNREAD = re.compile(r"(^|\.)(pooler|lm_head|embed_out|cls\.predictions|score|classifier|rotary_emb\.inv_freq)\b")


@contextmanager
def no_progress_bar() -> Generator[None]:
    """Keep transformers from drawing a bar for each file of weights."""
    logging = extras.load("transformers.utils.logging", extra="models")
    with _quiet:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()


def check_commit(revision: str | None) -> None:
    """Refuse code of a model's own that may be another tomorrow.

    Raises
    ------
    ConfigurationError
        Unless ``revision`` is a full commit.
    """
    if revision is None or not _COMMIT.fullmatch(revision):
        problem = f"trust_remote_code=True runs code of the model's own, and revision is {revision!r}."
        raise ConfigurationError(
            problem, "Read the code, and pin it: revision= the full commit, 40 hexadecimal digits."
        )


def check_code(folder: Path) -> None:
    """Refuse code that a pinned model takes from elsewhere.

    Raises
    ------
    ConfigurationError
        If a configuration names code in another repository, whose commit is not pinned.
    """
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        try:
            named: dict[str, Any] = (
                json.loads(file.read_text(encoding="utf-8")).get("auto_map") or {} if file.is_file() else {}
            )
        except (ValueError, AttributeError):
            continue  # what loads it says what is wrong
        for place in map(str, named.values()):
            if "--" in place:
                problem = f"{file} takes code from another repository, {place!r}, at no fixed commit."
                raise ConfigurationError(problem, "Copy that code beside the model, and pin the whole.")


def text_model(model: Any) -> Any:
    """The part of a model that reads text: without head, and of one that reads pictures too the language model."""
    return model.base_model if model.config.get_text_config() is model.config else model.get_decoder()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model.

    Raises
    ------
    ConfigurationError
        If there is none, or it cannot be read.
    """
    transformers = extras.load("transformers", extra="models")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        problem = f"{folder} has no tokenizer that could be loaded: {error}"
        raise ConfigurationError(problem, "Save it beside the model: tokenizer.save_pretrained(folder).") from error


def load_model(
    folder: Path, *, dtype: str = "auto", device: str | None = None, kernel: str | None = None, code: bool = False
) -> Any:
    """A model in evaluation mode, with its language-model head where the checkpoint has one.

    Parameters
    ----------
    dtype
        As in `LanguageModel`.
    device
        As torch names it; the best one there is where None.
    kernel
        transformers' attention implementation; its own choice where None.
    code
        Whether code of the model's own may run.

    Raises
    ------
    ConfigurationError
        Pickled weights, an architecture that transformers does not know, weights that lack or do not fit, NaN.
    """
    weight_files(folder)  # refuses pickles before anything is loaded
    if code:
        check_code(folder)
    torch, transformers = extras.load("torch", extra="models"), extras.load("transformers", extra="models")
    broken = extras.load("safetensors", extra="models").SafetensorError
    how: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": code}
    try:
        known = None if code else stand_in(folder)
        if known is None:
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=code)
        else:
            config = known.config
            how |= {"config": config, "key_mapping": known.names}
        maker = getattr(transformers, _class_for(config))
        if dtype in QUANTIZED:
            how |= {"quantization_config": _quantization(dtype), "device_map": device or "auto"}
        if kernel is not None:
            how["attn_implementation"] = kernel
        with_type: Any = "auto" if dtype in ("auto", *QUANTIZED) else getattr(torch, dtype)
        with no_progress_bar():
            model, told = maker.from_pretrained(str(folder), dtype=with_type, output_loading_info=True, **how)
        if dtype not in QUANTIZED:
            model.to(device or best_device())
        model.reperio_lacks = tuple(sorted(told.get("missing_keys", ())))  # made up: a head that is read must not be
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AssertionError, ImportError, broken) as error:
        problem = f"{folder} could not be loaded: {error}"
        raise ConfigurationError(
            problem, "Check the folder, the device, and that transformers knows the model."
        ) from error
    _check_whole(folder, told)
    _check_finite(folder, model)
    return model.eval()


def best_device() -> str:
    """The accelerator, if there is one that torch knows."""
    torch = extras.load("torch", extra="models")
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _class_for(config: Any) -> str:
    """Which of transformers' classes reads a checkpoint with the head that it was saved with."""
    names = " ".join(getattr(config, "architectures", None) or [])
    if "ForCausalLM" in names or "LMHeadModel" in names or "ForConditionalGeneration" in names:
        return "AutoModelForCausalLM"
    return "AutoModelForMaskedLM" if "ForMaskedLM" in names else "AutoModel"


def _quantization(dtype: str) -> Any:
    extras.load("bitsandbytes", extra="quantized")
    transformers = extras.load("transformers", extra="models")
    return transformers.BitsAndBytesConfig(load_in_8bit=dtype == "int8", load_in_4bit=dtype == "int4")


def _check_whole(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuse weights that transformers has made up."""
    missing = sorted(name for name in told.get("missing_keys", ()) if not _UNREAD.search(name))
    wrong = sorted(str(entry[0]) for entry in told.get("mismatched_keys", ()))
    if missing or wrong:
        what = f"lacks {missing[0]}" if missing else f"has {wrong[0]} in another shape"
        problem = f"{folder} {what} ({len(missing)} weights missing, {len(wrong)} of another shape)."
        raise ConfigurationError(problem, "The checkpoint is not whole, or its config.json is another model's.")


def _check_finite(folder: Path, model: Any) -> None:
    torch = extras.load("torch", extra="models")
    for name, weight in model.named_parameters():
        # A sum is one pass without a copy; it is NaN or infinite where any value is, or where they overflow.
        if weight.is_floating_point() and not torch.isfinite(weight.sum(dtype=torch.float32)):
            bad = int((~torch.isfinite(weight)).sum())
            if bad:
                problem = f"{folder}: the weight {name} holds {bad} values that are NaN or infinite."
                raise ConfigurationError(problem, "Fetch the checkpoint again, or another one.")


def find_layers(model: Any) -> tuple[Any, str, list[Any]]:
    """Where a model keeps its layers: the module, the attribute's name, and the layers.

    Raises
    ------
    ConfigurationError
        If it has no list of layers that is as long as its configuration says.
    """
    torch = extras.load("torch", extra="models")
    wanted = getattr(model.config, "num_hidden_layers", None)
    for parent in model.modules():
        for name, child in parent.named_children():
            if not isinstance(child, torch.nn.ModuleList):
                continue
            layers: list[Any] = list(child)
            if len(layers) == wanted and len({type(layer).__name__ for layer in layers}) == 1:
                return parent, name, layers
    problem = f"{type(model).__name__} has no list of {wanted} layers."
    raise ConfigurationError(problem, "Use a text model of transformers with one stack of layers.")


def position_table(base: Any) -> Any:
    """The table of a model with learnt positions; None for any other."""
    tables = (getattr(part, "position_embeddings", None) for part in base.modules())
    return next((table for table in tables if hasattr(table, "num_embeddings")), None)


def first_position(base: Any) -> int:
    """What a model calls the position of a row's first token: RoBERTa's family counts from after the padding's."""
    table = position_table(base)
    return 0 if table is None or table.padding_idx is None else int(table.padding_idx) + 1


def rope_change(config: Any) -> tuple[str, int] | None:
    """The kind of rotary positions that depend on a call's longest row, and up to which length they do not."""
    told: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    each: list[dict[str, Any]] = [told, *(part for part in told.values() if isinstance(part, dict))]
    for rope in each:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            usual = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
            return str(rope["rope_type"]), int(rope.get("original_max_position_embeddings") or usual)
    return None


def load_adapters(model: Any, adapters: Mapping[str, Path]) -> None:
    """Load LoRA adapters beside the weights, all of them switched off.

    Raises
    ------
    NotFound
        If an adapter's folder is not there.
    ConfigurationError
        If an adapter was made for another model, or is pickled.
    """
    for name, folder in adapters.items():
        config = folder / "adapter_config.json"
        if not config.is_file():
            raise NotFound(f"adapters[{name!r}]: {folder} has no adapter_config.json.", "Give the adapter's folder.")
        if not name or "." in name:
            raise ConfigurationError(f"An adapter is called {name!r}.", "Use a name without a dot.")
        adapter_settings(folder)  # refuses a broken one
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            problem = f"adapters[{name!r}]: {folder} has no adapter_model.safetensors."
            raise ConfigurationError(problem, "Save the adapter with peft: it writes safetensors.")
        peft = extras.load("peft", extra="adapters")
        try:
            tensors = extras.load("safetensors.torch", extra="models").load_file(weights)
        except (OSError, extras.load("safetensors", extra="models").SafetensorError) as error:
            raise ConfigurationError(f"{weights} could not be read: {error}", "Fetch the adapter again.") from error
        tensors = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
        # An adapter of a model without a head names its layers without that model's own name.
        inside = all(key.startswith(f"{model.base_model_prefix}.") for key in tensors)
        holder = model if inside else model.base_model
        try:
            peft.inject_adapter_in_model(peft.PeftConfig.from_pretrained(str(folder)), holder, name)
            told = peft.set_peft_model_state_dict(holder, tensors, adapter_name=name)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            raise _other_base(name, config, model, error) from error
        lacking = [key for key in told.missing_keys if f".{name}." in key]
        if lacking or told.unexpected_keys:
            strange = sorted([*lacking, *told.unexpected_keys])
            raise _other_base(name, config, model, f"{len(strange)} weights have no counterpart, as {strange[0]}.")
        _check_finite(folder, holder)
    if adapters:
        switch_adapter(model, None)
        model.requires_grad_(False)
        model.eval()


def merge_adapter(model: Any, folder: Path) -> None:
    """Add an adapter to the weights for good, as LLM2Vec does with that of its first stage.

    Raises
    ------
    ConfigurationError
        If it was made for another model, or is pickled.
    """
    name = "merged"
    load_adapters(model, {name: folder})
    whole = extras.load("peft.utils.other", extra="adapters").AuxiliaryTrainingWrapper
    if any(isinstance(part, whole) for part in model.modules()):
        problem = f"The adapter in {folder} replaces whole modules, and is to be merged."
        raise ConfigurationError(problem, "Merge it with peft, and save the model.")
    tuned = extras.load("peft.tuners.tuners_utils", extra="adapters").BaseTunerLayer
    for parent in list(model.modules()):
        for place, child in list(parent.named_children()):
            if isinstance(child, tuned):
                child.merge(adapter_names=[name])
                setattr(parent, place, child.get_base_layer())


def switch_adapter(model: Any, name: str | None) -> None:
    """Switch one of a model's adapters on and the others off; all of them off where None."""
    tuned = extras.load("peft.tuners.tuners_utils", extra="adapters").BaseTunerLayer
    whole = extras.load("peft.utils.other", extra="adapters").AuxiliaryTrainingWrapper
    for part in model.modules():
        if not isinstance(part, (tuned, whole)):
            continue
        # A module that an adapter replaces as a whole knows the adapters that do so, and no other.
        used = name is not None and (isinstance(part, tuned) or name in part._adapters)
        part.enable_adapters(used)
        if used:
            part.set_adapter(name, inference_mode=True)


def _other_base(name: str, config: Path, model: Any, why: object) -> ConfigurationError:
    base = adapter_settings(config.parent).get("base_model_name_or_path")
    problem = f"The adapter {name!r} was made for {base!r} and does not fit this {type(model).__name__}: {why}"
    return ConfigurationError(problem, "Load it on the model that it was trained on.")
