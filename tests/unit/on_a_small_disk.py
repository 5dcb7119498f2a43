"""Writes onto a disk in memory that is made a little larger each time (``unshare -rm`` it).

Each job tries with less room than it needs, then with more, and returns what the tries said; the last one ends well.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfadapt.errors import HFAdaptError

Room = Callable[[int], None]


def tried(call: Callable[[], Any]) -> str:
    """What an error of ours said, or "" where there was none; any other error ends the job."""
    try:
        call()
    except HFAdaptError as error:
        return str(error)
    return ""


def save(place: Path, room: Room) -> list[str]:
    """Over an older save, which stays until there is room for the new one."""
    import torch

    import hfadapt
    from hfadapt.testing.tiny import tiny_model

    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.LoRA(r=8), "a", verify=False)
    hfadapt.save(model, place / "out")
    older = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.fill_(2.0)
    said = []
    for pages in range(100):
        room(4 * pages)
        said.append(tried(lambda: hfadapt.save(model, place / "out")))
        assert [path.name for path in place.iterdir()] == ["out"], "left behind"
        if not said[-1]:
            break
        assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == older
    assert {path.name for path in (place / "out").iterdir()} == {*older}
    again = hfadapt.load(place / "out", tiny_model("bert"))
    assert {float(p.flatten()[0]) for name, p in again.named_parameters() if "lora" in name} == {2.0}
    return said


def bulk(place: Path, room: Room) -> list[str]:
    """Whole files answered: what is written stays, and the same run goes on with what is missing."""
    from hfadapt import Engine, MultiTaskModel
    from hfadapt.inference.bulk import Bulk, answer_files
    from hfadapt.testing.tiny import tiny_model
    from hfadapt.testing.toy import every_toy_task, tiny_tokenizer

    beside = place.parent / "beside"
    tiny_model("bert").save_pretrained(beside / "base")
    tiny_tokenizer().save_pretrained(beside / "base")
    model = MultiTaskModel.from_pretrained(str(beside / "base"), tasks=every_toy_task(), method="lora")
    model.save_pretrained(beside / "a")
    rows = [{"text": f"w{i} w{i + 1}", "text_pair": f"w{i + 2}"} for i in range(60)]
    (beside / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    engine = Engine.from_pretrained(beside / "a")

    def job(output: Path) -> Bulk:
        return Bulk(str(beside / "a"), str(beside / "rows.jsonl"), str(output), rows_per_part=20)

    answer_files(job(beside / "want"), engine=engine)
    said, parts = [], []
    for pages in range(100):
        room(4 * pages % 24)
        said.append(tried(lambda: answer_files(job(place / "out"), engine=engine)))
        found = [path.name for path in (place / "out").iterdir()] if (place / "out").exists() else []
        assert not [name for name in found if name.startswith(".")], "half a file"
        parts.append(len(found))
        if not said[-1]:
            break
    assert parts == sorted(parts) and len({*parts}) > 2, f"what is written stays: {parts}"
    for path in (beside / "want").glob("answers-*"):
        assert (place / "out" / path.name).read_bytes() == path.read_bytes()
    return said


RECIPE = """\
model: {base}
tasks:
  - {{name: wn_relation, pair: separate, limit: {{train: 24, validation: 6, test: 6}}}}
  - {{name: sms_spam, limit: {{train: 24, validation: 6, test: 6}}}}
method: {{method: low_rank, size: 4}}
mixing: {{batch_size: 4, epoch_steps: 2}}
training: {{num_train_epochs: 2, learning_rate: 1e-3, save_strategy: epoch}}
output: {output}
"""


def train(place: Path, room: Room) -> list[str]:
    """A whole run: with a little more room each time it goes on, and comes to its end."""
    from hfadapt.recipes import run as runs
    from hfadapt.recipes.config import load_recipe
    from hfadapt.recipes.results import RunResult
    from hfadapt.testing.tiny import tiny_model
    from hfadapt.testing.toy import tiny_tokenizer

    beside = place.parent / "beside"
    tiny_model("bert").save_pretrained(beside / "base")
    tiny_tokenizer().save_pretrained(beside / "base")
    (beside / "recipe.yaml").write_text(RECIPE.format(base=beside / "base", output=place / "run"))
    # What fills the disk comes while the run goes on: there was room for it when it began.
    runs.require_room = lambda *given: None
    recipe = load_recipe(beside / "recipe.yaml")

    def go(**how: bool) -> None:
        run = runs.Run(recipe)
        with run.prepare_output(recipe_file=beside / "recipe.yaml", **how):
            run.finish(run.train(resume=how.get("resume", False)))

    said: list[str] = []
    for kib in (0, 40, 120, 240, 480, 8192):
        room(kib)
        resumes = (place / "run").exists() and any((place / "run").iterdir())
        said.append(tried(lambda resume=resumes: go(resume=resume)))
        if "no checkpoint" in said[-1]:
            said[-1] = tried(lambda: go(overwrite=True))
        if not said[-1]:
            break
    assert RunResult.read(place / "run").arms and (place / "run" / "report.html").is_file()
    assert not [path for path in place.rglob("*") if ".saving-" in path.name or path.suffix in (".part", ".tmp")]
    return said


if __name__ == "__main__":
    disk = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)

    def with_room(kib: int) -> None:
        used = shutil.disk_usage(disk).used // 1024
        subprocess.run(["mount", "-o", f"remount,size={used + max(kib, 4)}k", str(disk)], check=True)

    print(json.dumps({"save": save, "bulk": bulk, "train": train}[sys.argv[2]](disk, with_room)))
