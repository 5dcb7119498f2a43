"""Methods that choose modules by name take any model: no map, no class of transformers, inputs of any kind."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt.errors import ArchitectureError, AttachError, ConfigError
from hfadapt.runtime import deltas_of
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.own_model import WIDTH, Block, Own, Unmapped, assert_rows_are_their_adapters, lora, own, tokens


def places(model, name="default"):
    return {path.partition(".hfadapt.")[0] for path, _ in deltas_of(model, name)}


@pytest.mark.parametrize(
    ("names", "more", "expected"),
    [
        (("all-linear",), {}, {f"blocks.{i}.{n}" for i in range(3) for n in ("mix", "up", "down")}),
        (("up", "score"), {}, {"blocks.0.up", "blocks.1.up", "blocks.2.up", "score"}),
        (("blocks.1.down",), {}, {"blocks.1.down"}),
        ((r"blocks\.[02]\.(up|down)",), {}, {f"blocks.{i}.{n}" for i in (0, 2) for n in ("up", "down")}),
        (("mix",), {"layers": (0, -1)}, {"blocks.0.mix", "blocks.2.mix"}),
        (("all-linear",), {"layers": "first_half"}, {f"blocks.0.{n}" for n in ("mix", "up", "down")}),
    ],
    ids=["all", "names", "path", "expression", "layers", "half"],
)
def test_names_expressions_and_numbers_choose_linears_of_a_model_of_ones_own(names, more, expected):
    model = own()
    hfadapt.attach(model, lora(*names, **more))
    assert places(model) == expected


def test_everything_that_lora_does_works_there(tmp_path):
    model, given = own(), tokens()
    before, state = model(given), copy.deepcopy(model.state_dict())
    handle = hfadapt.attach(model, lora("all-linear"), names=["a", "b"])
    assert_rows_are_their_adapters(model, given)
    model(given, task_ids=["a", "b", "a"]).square().mean().backward()
    trained = hfadapt.trainable_parameters(model)
    assert trained and all(".hfadapt." in name and p.grad is not None for name, p in trained.items())
    with hfadapt.active(model, hfadapt.Average("a", "b")):
        average = model(given)
    with hfadapt.active(model, hfadapt.Stack("a", "b")):
        stacked = model(given)
    assert not torch.equal(average, stacked)
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, own())
    assert torch.equal(again(given, task_ids="b"), model(given, task_ids="b"))
    hfadapt.detach(again, ["b"])
    merged = hfadapt.merge(again, "a")
    torch.testing.assert_close(again(given), model(given, task_ids="a"))
    merged.unmerge()
    hfadapt.freeze(model, "a")
    handle.detach()
    assert torch.equal(model(given), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_parallel_runs_every_child_there():
    model, given = own(), tokens()
    hfadapt.attach(model, lora("all-linear"), names=["a", "b"])
    with torch.no_grad(), hfadapt.active(model, hfadapt.Parallel("a", "b")):
        out = model(given)
    torch.testing.assert_close(out, torch.cat([model(given, task_ids="a"), model(given, task_ids="b")]))


def test_a_copy_and_a_pickle_stay_independent():
    import pickle

    model, given = own(), tokens()
    hfadapt.attach(model, lora("up"), names=["a", "b"], verify=False)
    copied = copy.deepcopy(model)
    assert_rows_are_their_adapters(copied, given)
    assert_rows_are_their_adapters(pickle.loads(pickle.dumps(model)), given)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("upp",), "Did you mean 'up'"),
        (("up", "mixx"), "Did you mean 'mix'"),
        (("query",), "Did you mean|target_modules="),
    ],
)
def test_a_name_that_matches_nothing_is_an_error_that_lists_near_ones(names, message):
    with pytest.raises(AttachError, match=message) as caught:
        hfadapt.attach(own(), lora(*names))
    assert "mix" in str(caught.value)


def test_a_bad_expression_and_a_layer_out_of_range_are_errors():
    with pytest.raises(ConfigError, match="regular expression"):
        lora("(up")
    with pytest.raises(AttachError, match="blocks: 0 to 2"):
        hfadapt.attach(own(), lora("up", layers=(7,)))


def test_default_lora_on_an_unmapped_model_says_what_works():
    with pytest.raises(AttachError, match="all-linear") as caught:
        hfadapt.attach(own(kind=Unmapped), "lora")
    assert "hfadapt.probe(model, inputs=" in str(caught.value)


def test_default_lora_on_a_model_without_such_roles_says_which_there_are():
    with pytest.raises(AttachError, match="roles ffn_in, ffn_out.*target_modules='all-linear'"):
        hfadapt.attach(own(), "lora")


def test_other_methods_say_so_too_and_leave_the_adapters_alone():
    model = own(kind=Unmapped)
    hfadapt.attach(model, lora("up"), "a")
    with pytest.raises(ArchitectureError, match="all-linear"):
        hfadapt.attach(model, "bottleneck", "b")
    assert hfadapt.attachment(model).names == ("a",)


class Bypassed(Own):
    """Reads the weight of one linear, and never calls another."""

    def forward(self, tokens):
        x = self.words(tokens)
        return self.score(self.blocks[0](x) @ self.score.weight.T @ self.score.weight)


class ReadsOnly(Block):
    def forward(self, x):
        return x + self.mix(x) + nn.functional.linear(x, self.up.weight)[..., :WIDTH]


class InsideBypassed(Own):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(ReadsOnly() for _ in range(2))


def test_a_linear_whose_weight_is_read_and_that_is_never_called_is_said_at_attach(caplog):
    with pytest.raises(AttachError, match="never run.*blocks.0.up"):
        hfadapt.attach(own(kind=InsideBypassed), lora("up", "mix"))
    with caplog.at_level(logging.WARNING):
        hfadapt.attach(own(kind=InsideBypassed), lora("all-linear"))
    assert "4 of 6 modules with an adapter did not run" in caplog.text and "blocks.0.up" in caplog.text


class Strange(Own):
    """Takes what nobody can make up."""

    def forward(self, story, plot):
        if not isinstance(plot, SimpleNamespace):
            raise TypeError("no plot")
        return super().forward(story)


class StrangeBypassed(InsideBypassed):
    def forward(self, story, plot):
        return super().forward(story)


def test_where_no_input_can_be_made_the_first_call_shows_that_every_slot_fires():
    model, given = own(kind=Strange), tokens()
    hfadapt.attach(model, lora("up"), names=["a", "b"])
    assert hfadapt.attachment(model).waiting is not None
    model(given, SimpleNamespace(), task_ids=["a", "b", "b"])
    assert hfadapt.attachment(model).waiting is None
    with pytest.raises(ArchitectureError, match="could not be run|no example input"):
        hfadapt.verify(model)
    assert hfadapt.verify(model, inputs={"story": given, "plot": SimpleNamespace()}) == 3
    other = own(kind=StrangeBypassed)
    hfadapt.attach(other, lora("up"))
    with pytest.raises(AttachError, match="would never run"):
        other(given, SimpleNamespace())


@pytest.mark.parametrize("ends", [[2, 5], (2, 5, 6)])
@pytest.mark.parametrize("model_type", ["llama", "bart", "t5"])
def test_a_config_may_name_several_ends_of_a_text(model_type, ends):
    model = tiny_model(model_type)
    model.config.eos_token_id = list(ends)
    hfadapt.attach(model, "lora")
    hfadapt.detach(model)
    from hfadapt.architecture.probe import probe

    assert probe(model).stacks


def test_a_role_is_a_linear_of_the_stack_and_no_module_of_that_name_elsewhere():
    model = tiny_model("bert", "sequence-classification")
    model.extra = nn.ModuleDict({"query": nn.Linear(32, 32)})
    hfadapt.attach(model, hfadapt.LoRA(target_modules=("query",)), train_head=False)
    assert places(model) == {f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)}


def test_a_map_by_the_probe_or_by_hand_is_taken_and_checked():
    model, inputs = tiny_model("llama"), tiny_inputs("llama")
    arch = hfadapt.probe(model, inputs=inputs)
    hfadapt.attach(model, "bottleneck", arch=arch)
    assert hfadapt.attachment(model).arch is arch
    with pytest.raises(ArchitectureError, match="not a map|no map|names modules that the model has not"):
        hfadapt.attach(tiny_model("bert"), "bottleneck", arch=arch)
    with pytest.raises(ArchitectureError, match="no map with stacks"):
        hfadapt.attach(tiny_model("bert"), "bottleneck", arch="bert")


@pytest.mark.parametrize("method", ["parallel", "bottleneck", "low_rank"])
def test_post_norm_layers_with_a_flattened_feed_forward_part_decode_token_by_token(method):
    model = tiny_model("opt", "causal-lm", do_layer_norm_before=False, word_embed_proj_dim=16)
    hfadapt.attach(model, {"method": method}, names=["a", "b"])
    given = {"input_ids": torch.randint(4, 90, (2, 5)), "max_new_tokens": 3, "do_sample": False}
    cached = model.generate(**given, task_ids=["a", "b"])
    assert torch.equal(cached, model.generate(**given, task_ids=["a", "b"], use_cache=False))


@pytest.mark.parametrize("method", ["pfeiffer", "houlsby", "parallel", "lora"])
def test_a_norm_may_return_a_tuple(method):
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = AutoModel.from_config(AutoConfig.for_model("ibert", vocab_size=99, **sizes)).eval()
    hfadapt.attach(model, method, names=["a", "b"])
    assert torch.isfinite(model(torch.randint(3, 90, (2, 5)), task_ids=["a", "b"])[0]).all()


@pytest.mark.parametrize("method", ["lora", "pfeiffer", "prefix", "pal"])
def test_rows_of_several_texts_each_are_verified_and_mixed(method):
    from transformers import AutoModelForMultipleChoice

    from hfadapt.testing.conformance import randomize

    model = AutoModelForMultipleChoice.from_config(tiny_model("bert").config).double().eval()
    hfadapt.attach(model, method, names=["a", "b"])
    randomize(model)
    given = {"input_ids": torch.randint(4, 90, (2, 3, 5)), "attention_mask": torch.ones(2, 3, 5, dtype=torch.long)}
    given["attention_mask"][0, 1, 3:] = 0
    mixed = model(**given, task_ids=["a", "b"]).logits
    for row, name in enumerate(("a", "b")):
        torch.testing.assert_close(mixed[row], model(**given, task_ids=name).logits[row])
