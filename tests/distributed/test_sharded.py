"""FSDP2 on two gloo processes: training equals that of one process, is saved whole, and nothing is added to it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

import hfadapt
from hfadapt.adapters.base_identity import TOKENS
from hfadapt.testing.regularizers import tiny_classifier
from tests.distributed.conftest import ranks
from tests.distributed.train_sharded import FAMILIES, build, tasks_model, through_trainer, train, with_more_tokens


@pytest.fixture(scope="module")
def ends(through):
    return ranks(through, "sharded")


@pytest.fixture(scope="module")
def alone():
    """What one process ends with, by family."""
    found = {}
    for name in FAMILIES:
        train(model := build(name), name, 0, 1)
        found[name] = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}
    return found


@pytest.mark.parametrize("name", list(FAMILIES))
def test_sharded_processes_equal_one_with_their_joint_batch(ends, alone, name):
    first, second = (one[name] for one in ends)
    assert first.keys() == alone[name].keys() and all(torch.equal(first[key], second[key]) for key in first)
    for key, value in alone[name].items():
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-6, msg=key)


def loaded(folder, **options):
    """The trained parameters of a folder, loaded on the base that a family begins with."""
    base = build("lora")
    hfadapt.detach(base)
    model = hfadapt.load(folder, model=base, **options)
    return model, dict(model.named_parameters())


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_sharded_model_is_saved_whole_by_the_first_process(through, alone, name):
    _, found = loaded(through / f"sharded-{name}")
    for key, value in alone[name].items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=key)


def test_rows_of_added_tokens_are_saved_whole(through, tmp_path):
    expected = with_more_tokens(tmp_path / "base").get_input_embeddings().weight[-2:]
    found = load_file(through / "sharded-tokens" / "adapter_model.safetensors")[f"{TOKENS}input"]
    assert torch.equal(found, expected)


def test_save_pretrained_of_a_sharded_model_holds_base_and_adapters(through, alone):
    found = dict(hfadapt.load(through / "sharded-whole").named_parameters())
    for key, value in alone["bottleneck"].items():
        torch.testing.assert_close(found[key].double(), value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("slim", [False, True])
def test_what_trainer_saves_of_a_model_that_accelerate_sharded_is_what_one_process_trains(through, tmp_path, slim):
    _, found = loaded(through / f"sharded-trainer-{slim}")
    alone = through_trainer(tmp_path, Trainer, 4)
    for key, value in alone.named_parameters():
        torch.testing.assert_close(found[key].double(), value, rtol=0, atol=1e-6, msg=key)


def test_a_model_of_tasks_is_saved_whole(through):
    trained = tasks_model()
    again = hfadapt.MultiTaskModel.from_pretrained(through / "sharded-tasks", base=tiny_classifier(None).bert)
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key].to(value.dtype), value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("folder", ["sharded-lora", "sharded-whole", "sharded-tasks", "sharded-trainer-False"])
def test_no_folder_names_a_class_that_sharding_made(through, folder):
    files = list((through / folder).rglob("*.json"))
    assert files and not any("FSDP" in file.read_text("utf-8") for file in files)


def test_a_sharded_model_is_still_sharded_after_a_save(ends):
    assert ends[0]["still sharded"] and ends[1]["still sharded"]


def test_nothing_is_added_to_a_sharded_model_and_the_error_says_what_to_do(ends):
    for one in ends:
        assert set(one["refused"]) == {"a term of the loss", "attach", "pack", "merge", "add_fusion", "add_router"}
        for said in one["refused"].values():
            assert "lie in shards on several processes" in said and "fully_shard" in said
            assert all(part in said for part in ("got:", "allowed:", "try:"))
