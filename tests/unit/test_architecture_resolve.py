"""From a model, whatever is around it, to its map."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, EncoderDecoderModel, T5EncoderModel

from hfadapt.architecture import resolve
from hfadapt.testing.tiny import tiny_config, tiny_inputs, tiny_model


def test_paths_are_relative_to_the_model_that_was_given():
    model = tiny_model("roberta", "sequence-classification")
    layer = resolve(model).layer("encoder", 1)
    assert layer.attention.query == "roberta.encoder.layer.1.attention.self.query"
    assert model.get_submodule(layer.ffn_out).out_features == 32


def test_an_encoder_alone_is_mapped_without_its_decoder():
    arch = resolve(T5EncoderModel(tiny_config("t5")))
    assert [stack.kind for stack in arch.stacks] == ["encoder"]


def test_a_decoder_alone_has_no_cross_attention():
    model = AutoModelForCausalLM.from_config(tiny_config("bart"))
    (stack,) = resolve(model).stacks
    assert stack.path == "model.decoder.layers"
    assert stack.cross_attention is None
    assert stack.causal


def test_a_model_inside_any_module_is_found():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict({"text": tiny_model("bert", "sequence-classification")})
            self.head = nn.Linear(32, 2)

    arch = resolve(Wrapper())
    assert arch.source == "table"
    assert arch.stacks[0].path == "inner.text.bert.encoder.layer"


def test_a_pair_of_known_models_is_mapped_as_their_sum():
    decoder = AutoModelForCausalLM.from_config(tiny_config("bert", is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=tiny_model("bert"), decoder=decoder).eval()
    arch = resolve(model)
    assert [stack.kind for stack in arch.stacks] == ["encoder", "decoder"]
    crossing = arch.stack("decoder")
    assert crossing.norms["post_cross"] == "crossattention.output.LayerNorm"
    fired = set()
    for path in arch.paths():
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: fired.add(path))
    with torch.no_grad():
        model(**tiny_inputs("bart", length=5))
    assert fired == set(arch.paths())


def test_a_shortened_model_has_as_many_layers_as_it_has():
    model = tiny_model("bert", num_hidden_layers=4)
    model.encoder.layer = model.encoder.layer[:3]
    assert resolve(model).stacks[0].num_layers == 3


def test_a_map_that_does_not_fit_gives_way_to_the_probe(caplog):
    model = tiny_model("bert")
    for layer in model.encoder.layer:
        layer.feed_in, layer.intermediate.dense = layer.intermediate, nn.Identity()
        layer.intermediate.dense = nn.Sequential(nn.Linear(32, 64))
    arch = resolve(model)
    assert arch.source == "table"
    model.encoder.blocks = model.encoder.layer
    del model.encoder.layer
    model.encoder.forward = lambda hidden_states, *args, **kwargs: _run(model.encoder.blocks, hidden_states)
    arch = resolve(model)
    assert arch.source == "probe"
    assert arch.stacks[0].path == "encoder.blocks"
    assert "does not fit" in caplog.text


def _run(layers, hidden):
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    for layer in layers:
        output = layer(hidden)
        hidden = output[0] if isinstance(output, tuple) else output
    return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)


@pytest.mark.parametrize("index", [2, -3])
def test_a_layer_that_is_not_there_is_refused(index):
    with pytest.raises(IndexError, match="has 2 layers"):
        resolve(tiny_model("bert")).layer("encoder", index)


def test_an_unknown_stack_names_those_that_exist():
    with pytest.raises(KeyError, match=r"encoder \(encoder.layer\)"):
        resolve(tiny_model("bert")).stack("decoder")
