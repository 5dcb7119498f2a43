"""AdapterHub's bottleneck adapters, invertible ones included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hfadapt.architecture import LayerMap
from hfadapt.runtime import deltas_of, shared_modules
from hfadapt_kernels import UnsupportedError, get_activation

from ...methods.bottleneck import Bottleneck, LayerNorms
from ...methods.invertible import Invertible
from .folder import Tensors, refused
from .layers import numbers, split_layers, sublayer_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt import MethodConfig

__all__ = ["ENDS", "activation_of", "bottleneck_configs", "bottleneck_weights", "owners_of"]

_FLAGS = {"attention": "mh_adapter", "cross": "cross_adapter", "ffn": "output_adapter"}
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_CLOSE = ("original_ln_before", "original_ln_after", "residual_before_ln")
#: Our parameters, and the ends of AdapterHub's keys; the down projection's depends on a norm before it.
ENDS = {
    "up": "adapter_up.weight",
    "up_bias": "adapter_up.bias",
    "scale": "scaling",
    "gate_weight": "gate.weight",
    "gate_bias": "gate.bias",
    "norm_before_weight": "adapter_norm_before.weight",
    "norm_before_bias": "adapter_norm_before.bias",
    "norm_after_weight": "adapter_norm_after.weight",
    "norm_after_bias": "adapter_norm_after.bias",
}
_FUNCTIONS = {"inner": "0", "outer": "2"}

Owners = dict[tuple[str, int, str], str]


def activation_of(config: Mapping[str, Any], folder: Any, old: bool) -> str:
    """Return the name here of a non-linearity.

    Raises:
        CheckpointError: no kernel here has it.
    """
    given = str(config.get("non_linearity", "relu")).lower()
    name = _OLD_ACTIVATIONS.get(given, given) if old else given
    try:
        return get_activation(name).name
    except UnsupportedError as error:
        raise refused("a non-linearity that hfadapt has not", folder, f"{given!r}", str(error)) from None


def owners_of(tensors: Tensors, kind: str = "adapters") -> Owners:
    """Return the modules that hold bottleneck adapters (or their fusion), by stack, layer and sub-layer.

    Raises:
        CheckpointError: one is in no layer of the model, or two are of one place.
    """
    found: Owners = {}
    rest = set(tensors.owners(kind))
    for layer in tensors.arch.layers():
        start = tensors.relative(layer.path) + "."
        for owner in [one for one in rest if f"{one}.".startswith(start)]:
            place = (layer.stack.path, layer.index, sublayer_of(owner.removeprefix(start).removesuffix("."), layer))
            if place in found and found[place] != owner:
                raise refused(
                    "two adapters of the file are at one place", tensors.folder, f"{owner} and {found[place]}"
                )
            found[place] = owner
    missed = rest - set(found.values())
    if missed:
        got = f"{sorted(missed)[0]} (of {len(rest)})"
        layers = ", ".join(tensors.relative(layer.path) for layer in list(tensors.arch.layers())[:2])
        raise refused("the adapter is of another base: it has layers that this model has not", tensors.folder, got, "",
                      f"layers such as {layers}")  # fmt: skip
    return found


def bottleneck_configs(config: Mapping[str, Any], tensors: Tensors, old: bool) -> tuple[MethodConfig, ...]:
    """Return our configs of AdapterHub's, one for each width that its layers have.

    Args:
        config: Its fields, checked.
        tensors: Of the file.
        old: Written by a release whose names of non-linearities differ.

    Raises:
        CheckpointError: the tensors are of other layers or widths than the config says.
    """
    owners = owners_of(tensors)
    act = activation_of(config, tensors.folder, old)
    on = tuple(place for place, flag in _FLAGS.items() if config.get(flag))
    _check_places(config, tensors, owners, on)
    sizes: dict[int, list[tuple[str, int]]] = {}
    for (stack, index, _), owner in owners.items():
        size = _size(config, tensors, stack, index, owner)
        if (stack, index) not in sizes.setdefault(size, []):
            sizes[size].append((stack, index))
    shared = any(stack.calls_per_module > 1 for stack in tensors.arch.stacks)
    if shared and (on != ("ffn",) or config.get("inv_adapter") or config.get("leave_out")):
        raise refused(
            "layers that are one module take an adapter behind the feed-forward part alone",
            tensors.folder,
            f"{', '.join(on)}, inv_adapter={config.get('inv_adapter')!r}, leave_out={config.get('leave_out')!r}",
            "train it anew",
        )
    made: list[MethodConfig] = []
    norms = _norms(config)
    for size, layers in sizes.items():
        for stack, indices in split_layers(tensors.arch, layers):
            kind = {
                s.path for s in tensors.arch.stacks if stack in ("all", "decoder" if s.kind == "decoder" else "encoder")
            }
            here = tuple(p for p in on if any(place == p and path in kind for path, _, place in owners))
            made.append(
                Bottleneck(
                    size=size,
                    non_linearity=act,
                    on=here,
                    is_parallel=bool(config.get("is_parallel")),
                    scaling=config.get("scaling", 1.0),
                    norms=norms,
                    dropout=config.get("dropout", 0.0),
                    use_gating="mean_padded" if config.get("use_gating") else False,
                    share=shared,
                    layers=indices,
                    stack=stack,
                )
            )
    if not made:
        raise refused("the file holds no bottleneck adapter", tensors.folder, f"none of {tensors.name!r}")
    return (*made, *_invertible(config, tensors, act))


def _norms(config: Mapping[str, Any]) -> LayerNorms:
    given = {name: config[name] for name in LayerNorms.__dataclass_fields__ if name in config}
    if config.get("is_parallel"):
        given = {name: value for name, value in given.items() if name in ("ln_before", "ln_after")}
    elif not given.get("original_ln_before"):
        given.pop("residual_before_ln", None)  # asks before or behind a norm that is not there
    return LayerNorms(**given)


def _check_places(config: Mapping[str, Any], tensors: Tensors, owners: Owners, on: tuple[str, ...]) -> None:
    """Raise unless the file has an adapter wherever the config says one is, and nowhere else."""
    out = set(config.get("leave_out") or ())
    number = numbers(tensors.arch)
    wanted = {
        (layer.stack.path, layer.index, place)
        for layer in tensors.arch.layers()
        for place in on
        if number[(layer.stack.path, layer.index)] not in out and (place != "cross" or _crosses(layer))
    }
    if wanted != set(owners):
        more, less = sorted(set(owners) - wanted), sorted(wanted - set(owners))
        which = more[0] if more else less[0]
        got = f"{which[2]} of layer {which[1]} in {which[0]} {'is in the file' if more else 'is not in the file'}"
        raise refused("the file has adapters at other places than its config says", tensors.folder, got)


def _crosses(layer: LayerMap) -> bool:
    return layer.cross_attention is not None


def _size(config: Mapping[str, Any], tensors: Tensors, stack: str, index: int, owner: str) -> int:
    key = f"{owner}.adapters.{tensors.name}.{_down(config, 'weight')}"
    weight = tensors.tensors.get(key)
    if weight is None or weight.dim() != 2:
        raise refused("the file lacks a tensor that the config announces", tensors.folder, key)
    width = next(one.hidden_size for one in tensors.arch.stacks if one.path == stack)
    factor = config.get("reduction_factor", 16)
    if isinstance(factor, dict):
        number = str(numbers(tensors.arch)[(stack, index)])
        factor = factor.get(number, factor.get("default"))
    size = None if factor is None else max(1, int(width // factor))
    if size != weight.shape[0]:
        got = f"a bottleneck of {weight.shape[0]} at {owner}, width {width} and reduction_factor {factor}"
        raise refused("the file's tensors have another width than its config says", tensors.folder, got)
    return int(weight.shape[0])


def _down(config: Mapping[str, Any] | Any, kind: str) -> str:
    before = config.get("ln_before") if isinstance(config, Mapping) else config
    return f"adapter_down.{int(bool(before))}.{kind}"


def _invertible(config: Mapping[str, Any], tensors: Tensors, act: str) -> tuple[MethodConfig, ...]:
    older = config.get("invertible_adapter") or {}
    block = config.get("inv_adapter") or older.get("block_type")
    start = f"invertible_adapters.{tensors.name}."
    there = [key for key in tensors.tensors if start in f".{key}"]
    # Task adapters of releases before 2021 say it and have none.
    if not block or not there:
        return ()
    if block != "nice":
        raise refused("an invertible adapter that hfadapt has not", tensors.folder, f"{block!r}", "", "'nice'")
    factor = config.get("inv_adapter_reduction_factor") or older.get("reduction_factor") or 2
    return (Invertible(block, factor, act),)


def bottleneck_weights(model: PreTrainedModel, name: str, tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors of our parameters of an adapter, by the model's names for them."""
    owners = owners_of(tensors)
    found: dict[str, Tensor] = {}
    before = False
    for path, delta in deltas_of(model, name):
        config: Any = delta.config(name)
        if config.method != "bottleneck":
            continue
        before = config.norms.ln_before
        if config.share:
            continue
        site = delta.site
        owner = owners[(site.stack, site.layer, site.slot.partition("_")[0])]
        for ours, parameter in delta.own(name).named_parameters():
            found[f"{path}.adapters.{name}.{ours}"] = _take(tensors, owner, ours, config.norms.ln_before, parameter)
    shared = shared_modules(model, name)
    if "bottleneck" in shared:
        found |= _shared_weights(shared["bottleneck"], owners, name, tensors, before)
    if "invertible" in shared:
        base = next(k.partition("invertible_adapters.")[0] for k in tensors.tensors if "invertible_adapters." in k)
        for ours, _ in shared["invertible"].named_parameters():
            function, part, kind = ours.split(".")[-3:]
            key = f"{base}invertible_adapters.{tensors.name}.{function}.{_FUNCTIONS[part]}.{kind}"
            found[f"hfadapt_shared.{name}.invertible.{ours}"] = tensors.take(key)
    return found


def _shared_weights(module: Any, owners: Owners, name: str, tensors: Tensors, ln_before: bool) -> dict[str, Tensor]:
    """Where all layers are one module (ALBERT), its adapters are one set for each sub-layer too."""
    found: dict[str, Tensor] = {}
    for key, inside in module.sets.items():
        stack, _, slot = key.rpartition("__")
        place = slot.partition("_")[0]
        owner = {o for (path, _, p), o in owners.items() if p == place and path.replace(".", "_") == stack}
        if len(owner) != 1:
            got = f"{len(owner)} sets of weights for {stack}"
            raise refused("layers that are one module have adapters of their own", tensors.folder, got)
        for ours, parameter in inside.named_parameters():
            full = f"hfadapt_shared.{name}.bottleneck.sets.{key}.{ours}"
            found[full] = _take(tensors, next(iter(owner)), ours, ln_before, parameter)
    return found


def _take(tensors: Tensors, owner: str, ours: str, ln_before: bool, parameter: Tensor) -> Tensor:
    down = {"down": "weight", "down_bias": "bias"}.get(ours)
    end = _down(ln_before, down) if down else ENDS[ours]
    tensor = tensors.take(f"{owner}.adapters.{tensors.name}.{end}")
    if ours.startswith("norm_before"):  # it is the first module of the same list too
        twin = f"{owner}.adapters.{tensors.name}.adapter_down.0.{ours.rpartition('_')[2]}"
        if twin in tensors.tensors and not tensors.take(twin).equal(tensor):
            raise refused("two names of one norm hold two norms", tensors.folder, twin)
    return tensor.reshape(parameter.shape) if ours == "gate_weight" and tensor.numel() == parameter.numel() else tensor
