"""Objects of other libraries that run a model which stands inside: every function takes that model, and says where."""

from __future__ import annotations

from typing import Any

from . import AttachError, HFAdaptError

__all__ = ["require_itself", "where_the_model_is"]


def where_the_model_is(thing: Any) -> str:
    """Return how to reach the model inside a ``SentenceTransformer``, ``PeftModel`` or pipeline; "" for others."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(thing).__mro__}
    if ("transformers", "Pipeline") in kinds and hasattr(thing, "model"):
        return "pipeline.model"
    if ("peft", "PeftModel") in kinds or ("peft", "PeftMixedModel") in kinds:
        return "peft_model.get_base_model()"
    if any(library == "sentence_transformers" for library, _ in kinds):
        path, one = "model", thing
        if ("torch", "Sequential") in kinds and len(thing):
            path, one = "model[0]", thing[0]
        name = next((name for name in ("model", "auto_model") if hasattr(one, name)), None)
        return "" if name is None else f"{path}.{name}"
    return ""


def require_itself(thing: Any, *, where: str, error: type[HFAdaptError] = AttachError) -> None:
    """Raise where the model is meant that stands inside what was given.

    Raises:
        HFAdaptError: of the given kind.
    """
    path = where_the_model_is(thing)
    if path:
        raise error(
            "this runs a model, and adapters sit on the model inside",
            where=where,
            got=type(thing).__name__,
            allowed="the model itself, a PreTrainedModel",
            try_=f"{path} in its place, as in hfadapt.attach({path}, ...): what it was taken from then runs it adapted",
        )
