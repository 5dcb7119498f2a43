"""Two steps of models that ``fully_shard`` (FSDP2) splits over two processes, and what saves them. See trainings.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainerControl, TrainerState, set_seed

import hfadapt
from hfadapt.runtime.shards import is_shard
from hfadapt.testing.conformance import randomize
from hfadapt.testing.regularizers import tiny_batch, tiny_classifier
from hfadapt.training import IdleTaskGuard
from tests.distributed.arguments import arguments

_NO_COMPILE: Any = SimpleNamespace(torch_compile=False)
NAMES = ("a", "b", "c")
# Of two steps of four rows: b is missing on one rank, and c is nobody's.
TASKS = ((0, 1, 0, 0), (0, 0, 1, 0))
FAMILIES: dict[str, Any] = {
    name: {"method": name, **({"dropout": 0.0} if name == "pal" else {})}
    for name in ("bottleneck", "lhuc", "lora", "mam", "mtl_lora", "pal", "prefix")
}
FAMILIES["fused"] = {"method": "bottleneck"}


def build(name: str, regularization: bool = False) -> Any:
    """The adapted model of a family, in float64 and without dropout."""
    set_seed(0)
    model: Any = tiny_classifier(None, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    hfadapt.attach(model, FAMILIES[name], names=NAMES, seed=0)
    randomize(model)
    if name == "fused":
        hfadapt.add_fusion(model, NAMES[:2], {"regularization": regularization})
    return model.double()


def shard(model: Any) -> Any:
    """Split every layer, and what is left, over all processes."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model: Any, name: str, rank: int, processes: int) -> None:
    """Make both steps with this process's rows."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    batch = {key: value for key, value in tiny_batch(8).items() if key != "task_ids"}
    model.train()
    for step, tasks in enumerate(TASKS):
        own = slice(rank * 4 // processes, (rank + 1) * 4 // processes)
        rows = {key: value[4 * step : 4 * step + 4][own] for key, value in batch.items()}
        ids = {} if name == "fused" else {"task_ids": torch.tensor(tasks[own])}
        model(**rows, **ids).loss.backward()
        IdleTaskGuard().on_pre_optimizer_step(_NO_COMPILE, TrainerState(), TrainerControl(), model=model)
        optimizer.step()
        optimizer.zero_grad()


def refusals(model: Any) -> dict[str, str]:
    """What is said where a sharded model would be added to, packed or merged."""
    fused = shard(build("fused", regularization=True)).train()
    calls = {
        "a term of the loss": lambda: fused(**{k: v for k, v in tiny_batch(2).items() if k != "task_ids"}),
        "attach": lambda: hfadapt.attach(model, "lora", "late"),
        "pack": lambda: hfadapt.pack(model),
        "merge": lambda: hfadapt.merge(model, "a"),
        "add_fusion": lambda: hfadapt.add_fusion(model, NAMES[:2]),
        "add_router": lambda: hfadapt.add_router(model, NAMES[:2]),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
        except hfadapt.errors.HFAdaptError as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


class ShardedTrainer(Trainer):
    """Trainer with accelerate's FSDP2 on CPUs, for which accelerate takes data parallelism whatever it is told."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        # every AcceleratorState that is made later takes it from there
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"],
            state_dict_type="FULL_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )
        self.is_fsdp_enabled = True


def through_trainer(folder: Path, kind: type[Trainer], rows_a_process: int, slim: bool = False) -> Any:
    """Train LoRA with a Trainer, which prepares the model by accelerate, and let it save a folder."""
    model = build("lora")
    hfadapt.slim_checkpoints(model, slim)
    batch = {key: value for key, value in tiny_batch(8).items() if key != "task_ids"}
    rows: Any = [{key: value[row] for key, value in batch.items()} for row in range(8)]
    for row, task in zip(rows, (task for step in TASKS for task in step), strict=True):
        row["task_ids"] = torch.tensor(task)
    args = arguments(
        folder,
        max_steps=2,
        per_device_train_batch_size=rows_a_process,
        weight_decay=0.1,
        max_grad_norm=0.0,
        average_tokens_across_devices=False,  # it multiplies the loss by the processes, for heads that count items
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
    )
    trainer = kind(model=model, args=args, train_dataset=rows, callbacks=[IdleTaskGuard()])
    trainer.train()
    assert all(map(is_shard, model.parameters())) == (kind is ShardedTrainer)
    trainer.save_model(str(folder))
    AcceleratorState._reset_state(reset_partial_state=True)
    return model


def tasks_model() -> Any:
    """A model of two tasks, in float64."""
    set_seed(0)
    base = tiny_classifier(None).bert
    heads = [hfadapt.Task(name, hfadapt.Classification(num_labels=2)) for name in ("one", "two")]
    return hfadapt.MultiTaskModel.from_base(base, heads, "lora").double()


def with_more_tokens(folder: Path) -> Any:
    """An adapted model with two tokens more than the base that it names."""
    set_seed(0)
    model: Any = tiny_classifier(None)
    model.config.save_pretrained(folder)
    model.config._name_or_path = str(folder)
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    hfadapt.attach(model, "lora")
    return model


def run(folder: Path) -> dict[str, Any]:
    """Train every family and save it on both processes: what each ended with, whole."""
    rank = distributed.get_rank()
    ends: dict[str, Any] = {}
    for name in FAMILIES:
        model = shard(build(name))
        train(model, name, rank, 2)
        hfadapt.save(model, folder / f"sharded-{name}")
        ends[name] = {key: p.full_tensor().detach() for key, p in model.named_parameters() if p.requires_grad}
        if name == "bottleneck":
            ends["refused"] = refusals(model)
            model.save_pretrained(folder / "sharded-whole")
            ends["still sharded"] = all(hasattr(p, "full_tensor") for p in model.parameters())
    several = tasks_model()
    fully_shard(several, mesh=init_device_mesh("cpu", (2,)))
    several.save_pretrained(folder / "sharded-tasks")
    hfadapt.save(shard(with_more_tokens(folder / f"named-{rank}")), folder / "sharded-tokens")
    for slim in (False, True):
        through_trainer(folder / f"sharded-trainer-{slim}", ShardedTrainer, 2, slim)
    return ends
