"""What a run wrote into its folder: by the list in its marker, or by the names that runs give to files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from ..adapters.atomic import write_json
from ..errors.version import __version__
from .results import RESULTS_FILE

__all__ = [
    "MARKER",
    "all_files",
    "ended",
    "foreign_as_text",
    "foreign_files",
    "is_a_run",
    "read_marker",
    "untouched",
    "write_marker",
]

MARKER = ".hfadapt-run.json"
_OF_THE_RUN = {MARKER, RESULTS_FILE, "results.md", "report.html"}
_PLOTS = {"learning_curves.png", "sampling.png", "parameters.png", "depths.png", "search.png"}
_OF_A_SEARCH = {"study.db", "study.db-journal"}  # sqlite keeps the second while it writes
_OF_THE_CARD = "parameters.png"
_OF_A_MODEL = {
    *("hfadapt_config.json", "adapter_config.json", "adapter_model.safetensors", "config.json", "README.md"),
    "generation_config.json",
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "dict.txt", "emoji.json", "source.spm", "target.spm"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model"),
}
_OF_A_CHECKPOINT = (
    *("trainer_", "training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state"),
    *("model.", "model-", "pytorch_model", "adapter_model"),
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".json")


def write_marker(folder: Path, others: Sequence[str], files: Sequence[str] | None = None) -> None:
    """Mark a folder as a run's.

    Args:
        folder: The run's.
        others: Files in it that no run wrote.
        files: All that the run wrote; while it goes on nobody knows.
    """
    marks: dict[str, Any] = {
        "format_version": 1,
        "hfadapt": __version__,
        "what": "what hfadapt train wrote here; --overwrite deletes nothing else",
        "others": list(others),
    }
    write_json(folder / MARKER, marks if files is None else {**marks, "files": list(files)})


def all_files(folder: Path) -> list[str]:
    """Everything in a folder that is no folder itself, and mount points, relative to it; links are not followed."""
    found = []
    for root, folders, files in os.walk(folder):
        for name in [*files, *folders]:
            path = os.path.join(root, name)
            if name in files or os.path.islink(path) or os.path.ismount(path):
                found.append(Path(path).relative_to(folder).as_posix())
    return sorted(found)


def foreign_files(folder: Path) -> list[str]:
    """Files that no run wrote: by the list of the run that ended there, or by their names."""
    marks, files = read_marker(folder), all_files(folder)
    if marks is not None and "files" in marks:
        own = {MARKER, *marks["files"]}
        return [name for name in files if name not in own]
    others = set(marks["others"]) if marks is not None else set()
    return [name for name in files if name in others or not _name_of_a_run(PurePath(name)) or not _plain(folder / name)]


def _plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def foreign_as_text(folder: Path) -> str | None:
    """What speaks against deleting a folder as a run's, as the end of a sentence; None where nothing does."""
    if not is_a_run(folder):
        return "holds no run"
    foreign = foreign_files(folder)
    if not foreign:
        return None
    shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
    return f"also holds what no run wrote: {shown}"


def _name_of_a_run(path: PurePath) -> bool:
    """Whether a run that was cut off, or one of an older version, may have written a file of this name."""
    top, *below = path.parts
    name = path.name
    if any(part == ".hfadapt-saved" or (part.startswith(".") and ".saving-" in part) for part in path.parts):
        return True  # of a write that was killed
    of_a_model = name in _OF_A_MODEL or (name.startswith(_OF_A_CHECKPOINT) and path.suffix in _WEIGHTS)
    match top, below:
        case _, []:
            return top in _OF_THE_RUN
        case "arms", [_]:
            return path.suffix == ".json"
        case "tokens", [_]:
            return path.suffix in (".safetensors", ".tmp")
        case "search", [_]:
            return name in _OF_A_SEARCH
        case "plots", [_]:
            return name in _PLOTS
        case "adapter", [_]:
            return of_a_model or name == _OF_THE_CARD
        case "checkpoints", [_, "runs", *_]:
            return name.startswith("events.out.tfevents")
        case "checkpoints", [_, step, _]:
            return of_a_model and step.removeprefix("tmp-").startswith("checkpoint-")
    return False


def read_marker(folder: Path) -> Any:
    """What a run left in its folder; None where no run did."""
    path = folder / MARKER
    if not _plain(path):
        return None
    try:
        marks = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    lists = [marks.get("others"), marks.get("files", [])] if isinstance(marks, dict) else [None]
    return marks if all(isinstance(one, list) and all(isinstance(n, str) for n in one) for one in lists) else None


def is_a_run(folder: Path) -> bool:
    """Whether a run wrote there; versions that left no marker left results, or arms and checkpoints of their own."""
    if read_marker(folder) is not None:
        return True
    try:
        results = json.loads((folder / RESULTS_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        traces = [*folder.glob("arms/*.json"), *folder.glob("checkpoints/*/checkpoint-*/trainer_state.json")]
        return bool(traces)
    return isinstance(results, dict) and {"format_version", "arms", "recipe", "proof"} <= set(results)


def ended(folder: Path) -> bool:
    return (folder / RESULTS_FILE).is_file()


def untouched(folder: Path) -> bool:
    """Whether the folder is missing or empty, or a run ended there before it had trained anything."""
    if read_marker(folder) is None:
        # looks at one name only: this may be a disk's root
        return not os.path.lexists(folder) or not any(folder.iterdir())
    names = {name for name in all_files(folder) if name != MARKER}
    return all(name.startswith("tokens/") for name in names) and not foreign_files(folder)
