"""Every hook of hfadapt, typed and documented.

Hooks register things; none of them runs inside a model's ``forward``. An implementation is a function of the same name
marked with ``hfadapt.hookimpl`` in a module that an entry point of the group ``hfadapt`` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click
    from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

    from .registry import Registry

__all__ = ["hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("hfadapt")
hookimpl = pluggy.HookimplMarker("hfadapt")


@hookspec
def register_methods(registry: Registry) -> None:
    """Add adaptation methods: ``registry.add("lora", LoRAMethod())``.

    Args:
        registry: Maps a method's name to a ``hfadapt.Method`` or a ``hfadapt.MethodPreset``.
    """


@hookspec
def register_architectures(registry: Registry) -> None:
    """Add architecture maps: ``registry.add("bert", describe_bert)``.

    Args:
        registry: Maps transformers' ``config.model_type`` to a function from the config to an ``ArchitectureMap``,
            or to several of which the first that fits the model counts.
    """


@hookspec
def register_mixing_strategies(registry: Registry) -> None:
    """Add ways to mix tasks: ``registry.add("annealed", Annealed)``.

    Args:
        registry: Maps a name to a subclass of ``hfadapt.data.MixingStrategy``.
    """


@hookspec
def register_regularizers(registry: Registry) -> None:
    """Add regularizers of the training loss: ``registry.add("smart", SMART)``.

    Args:
        registry: Maps a name to a subclass of ``hfadapt.Regularizer``.
    """


@hookspec
def register_metrics(registry: Registry) -> None:
    """Add metrics that tasks may name: ``registry.add("kappa", kappa)``.

    Args:
        registry: Maps a name to a function of ``hfadapt.training.Scored``, or to an object that is called so; its
            attributes ``greater_is_better``, ``low`` and ``high`` say direction and range.
    """


@hookspec
def register_heads(registry: Registry) -> None:
    """Add kinds of task heads: ``registry.add("ordinal", Ordinal)``.

    Args:
        registry: Maps ``Head.kind`` to a subclass of ``hfadapt.Head``; recipes and saved folders name it so.
    """


@hookspec
def register_backends(registry: Registry) -> None:
    """Add implementations of ops: ``registry.add("pal_attention-mychip", Implementation("mychip", ...))``.

    Args:
        registry: Maps the name of an op and of a backend, joined by a hyphen, to an ``Implementation`` of
            ``hfadapt_kernels.backend``; the automatic choice asks it before hfadapt's own.
    """


@hookspec
def register_formats(registry: Registry) -> None:
    """Add formats of other libraries' folders: ``registry.add("peft", PeftFormat())``.

    Args:
        registry: Maps a format's name to a ``FolderFormat`` of ``hfadapt.adapters.formats``; ``hfadapt.load`` asks each
            whether a folder is its own.
    """


@hookspec
def register_commands(group: click.Group) -> None:
    """Add commands to the command line: ``group.add_command(my_command)``.

    Args:
        group: The click group of the program ``hfadapt``.
    """


@hookspec
def configure_training(args: TrainingArguments, model: PreTrainedModel, tasks: list) -> list[TrainerCallback] | None:
    """Return callbacks to add to a training run that ``hfadapt train`` starts.

    Args:
        args: The arguments of the run, for reading.
        model: The adapted model.
        tasks: The ``hfadapt.Task`` objects of the run.
    """


@hookspec
def model_card_sections(model: PreTrainedModel) -> list[str] | None:
    """Return Markdown sections to add to the model card of a saved adapter.

    Args:
        model: The adapted model that is being saved.
    """
