"""What transformers' auto classes call for a folder of ours: it gives the model that was saved, adapters in place.

It is imported together with hfadapt, to register its classes; what they need to open a folder is imported inside.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from ..adapters.folder_config import HFAdaptConfig
from ..errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["OfAuto", "door_for"]

#: Auto classes that promise no other kind of model than a ``MultiTaskModel`` is.
_OF_TASKS = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")


class OfAuto:
    """Opens folders for one auto class; what it gives is an instance of the class that the folder names."""

    config_class = HFAdaptConfig
    auto: ClassVar[Any]

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *args: Any, **kwargs: Any) -> PreTrainedModel:
        """Load a ``MultiTaskModel``, or adapters on the base that their folder names, in evaluation mode.

        Args:
            name: A folder, or its name on the hub.
            args: None are known.
            kwargs: What says where on the hub it is; the rest goes to the base's ``from_pretrained``.

        Raises:
            CheckpointError: the folder is damaged, names no base, or holds another kind of model than is asked for.
        """
        from ..adapters.base_model import model_class
        from ..adapters.files import read_config
        from ..adapters.from_hub import local_folder, of_the_base
        from ..adapters.load import load_adapters
        from .save import KEY

        folder = local_folder(name, kwargs)
        data = read_config(folder)
        options = of_the_base(kwargs)
        if KEY in data:
            from .model import MultiTaskModel  # whose module registers these classes

            cls._require(cls.auto.__name__ in _OF_TASKS, "MultiTaskModel", folder, "MultiTaskModel.from_pretrained")
            return MultiTaskModel.from_pretrained(folder, **options)
        if not data["base_model_name_or_path"]:
            raise CheckpointError(
                "the folder holds adapters but no tasks, and its base has no name",
                where=str(folder),
                got=data["model_class"],
                allowed="adapters whose base can be found",
                try_="hfadapt.load(folder, model=base), with the base that was adapted",
            )
        kind = model_class(data["model_class"], folder)
        made = cls.auto._model_mapping.get(kind.config_class, ())
        fits = cls.auto.__name__ == "AutoModel" or kind in (made if isinstance(made, tuple) else (made,))
        cls._require(fits, kind.__name__, folder, "hfadapt.load")
        return load_adapters(folder, options=options)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> PreTrainedModel:
        """What ``from_config`` calls.

        Raises:
            CheckpointError: always: adapters without a base would get one with random weights.
        """
        raise CheckpointError(
            "a folder's config alone makes no model",
            where=f"{cls.auto.__name__}.from_config",
            got=type(config).__name__,
            allowed="the folder",
            try_=f"{cls.auto.__name__}.from_pretrained(folder)",
        )

    @classmethod
    def _require(cls, fits: bool, kind: str, folder: Any, other: str) -> None:
        if not fits:
            raise CheckpointError(
                f"the folder holds another kind of model than {cls.auto.__name__} gives",
                where=str(folder),
                got=kind,
                allowed=f"what {cls.auto.__name__} makes of a base",
                try_=f"{other}(folder), or AutoModel.from_pretrained(folder), which give that model",
            )


def door_for(auto: Any) -> type[OfAuto]:
    """Return what is registered with an auto class.

    It is called as the model of several tasks is: pipelines compare a model's class with what is registered by name.
    """
    return type("MultiTaskModel", (OfAuto,), {"auto": auto, "__module__": __name__})
