"""The shipped maps: each names what is there, what runs, and what the automatic probe finds by itself."""

import copy
import pickle

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hfadapt.architecture import NORM_ROLES, STYLES, is_linear, linear_sizes, resolve
from hfadapt.architecture.probe import probe
from hfadapt.testing.tiny import ALL_TINY_TYPES, LAYERS, tiny_heads, tiny_inputs, tiny_model

HEADS = [(name, head) for name in ALL_TINY_TYPES for head in (None, *tiny_heads(name))]
VARIANTS = {
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "opt-without-final-norm": ("opt", {"_remove_final_layer_norm": True}),
    "albert-two-groups": ("albert", {"num_hidden_layers": 4, "num_hidden_groups": 2}),
    "albert-inner-layers": ("albert", {"inner_group_num": 2}),
    "bert-as-decoder": ("bert", {"is_decoder": True}),
    "modernbert-dropout": ("modernbert", {"attention_dropout": 0.1}),
    "bart-uneven": ("bart", {"encoder_layers": 3, "encoder_attention_heads": 2, "decoder_ffn_dim": 48}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "gemma-wide-heads": ("gemma", {"head_dim": 16}),
}


@pytest.mark.parametrize("name", ALL_TINY_TYPES)
def test_table_equals_the_probe(name):
    model = tiny_model(name)
    assert resolve(model).source == "table"
    assert probe(model) == resolve(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_table_follows_the_config(variant):
    name, changes = VARIANTS[variant]
    model = tiny_model(name, **changes)
    assert resolve(model).source == "table"
    assert probe(model) == resolve(model)


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_every_mapped_place_runs_under_every_head_and_padding(name, head):
    model = tiny_model(name, head)
    arch = resolve(model)
    assert arch.source == "table"
    fired = set()
    for path in arch.paths():
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: fired.add(path))
    for padding in (None, "right", "left"):
        fired.clear()
        with torch.no_grad():
            model(**tiny_inputs(name, head, padding=padding))
        assert fired == set(arch.paths())


@pytest.mark.parametrize("name", ALL_TINY_TYPES)
def test_sizes_and_roles_agree_with_the_modules(name):
    model = tiny_model(name)
    for stack in resolve(model).stacks:
        assert stack.num_layers == LAYERS
        assert stack.style in STYLES
        assert set(stack.norms) <= set(NORM_ROLES)
        for layer in (stack.layer(0), stack.layer(-1)):
            for attention in filter(None, (layer.attention, layer.cross_attention)):
                inner = stack.num_heads * stack.head_dim
                sizes = {role: linear_sizes(model.get_submodule(getattr(attention, role))) for role in ("output",)}
                assert sizes["output"] == (inner, stack.hidden_size)
                keys = stack.num_kv_heads * stack.head_dim
                if attention.fused:
                    assert linear_sizes(model.get_submodule(attention.fused)) == (stack.hidden_size, inner + 2 * keys)
                else:
                    assert linear_sizes(model.get_submodule(attention.query)) == (stack.hidden_size, inner)
                    assert linear_sizes(model.get_submodule(attention.value))[1] == keys
            assert linear_sizes(model.get_submodule(layer.ffn_out)) == (stack.ffn_size, stack.hidden_size)
            wide = stack.ffn_size * (2 if stack.ffn_gated_in_one else 1)
            assert linear_sizes(model.get_submodule(layer.ffn_in[0])) == (stack.hidden_size, wide)
            assert all(is_linear(model.get_submodule(path)) for path in layer.linears.values())


@pytest.mark.parametrize("name", ALL_TINY_TYPES)
def test_top_gives_the_last_hidden_state(name):
    model = tiny_model(name)
    arch = resolve(model)
    last = {}
    stack = arch.stacks[-1]
    if arch.model_type in ("clip", "clip_vision_model"):
        stack = next(one for one in arch.stacks if one.kind == "vision")
    model.get_submodule(stack.top).register_forward_hook(lambda *call: last.update(top=call[2]))
    with torch.no_grad():
        output = model(**tiny_inputs(name))
    if name == "clip":
        output = output.vision_model_output
    top = last["top"][0] if isinstance(last["top"], tuple) else last["top"]
    torch.testing.assert_close(top, output.last_hidden_state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL_TINY_TYPES)
def test_attention_module_is_what_the_attention_function_is_given(name):
    model = tiny_model(name, attn_implementation="eager")
    arch = resolve(model)
    given = set()

    def watch(module, *args, **kwargs):
        given.add(module)
        kwargs.pop("softcap", None)  # of Gemma 2, which sdpa refuses
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("watch", watch)
    AttentionMaskInterface.register("watch", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        model.set_attn_implementation("watch")
    except ValueError:
        assert not arch.attention_interface
        return
    with torch.no_grad():
        model(**tiny_inputs(name))
    mapped = {
        model.get_submodule(attention.module)
        for layer in arch.layers()
        for attention in (layer.attention, layer.cross_attention)
        if attention is not None
    }
    assert given == (mapped if arch.attention_interface else set())


@pytest.mark.parametrize("name", ALL_TINY_TYPES)
def test_embeddings_are_those_that_see_the_token_ids(name):
    model = tiny_model(name)
    called = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == 99:
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    with torch.no_grad():
        model(**tiny_inputs(name))
    assert tuple(called) == resolve(model).embeddings


def test_albert_counts_depth_by_calls():
    stack = resolve(tiny_model("albert", num_hidden_layers=6, num_hidden_groups=2)).stacks[0]
    assert (stack.num_layers, stack.calls_per_module) == (6, 3)
    assert [layer.call for layer in map(stack.layer, range(6))] == [0, 1, 2, 0, 1, 2]
    assert stack.layer(2).path == "encoder.albert_layer_groups.0.albert_layers.0"
    assert stack.layer(-1).path == "encoder.albert_layer_groups.1.albert_layers.0"


def test_fused_columns_are_query_key_value_blocks():
    assert {resolve(tiny_model(name)).stacks[0].attention.fused_layout for name in ("gpt2", "modernbert")} == {"blocks"}


def test_linears_lists_every_linear_of_the_layers_and_nothing_else():
    model = tiny_model("deberta-v2", "sequence-classification")
    names = resolve(model).linears(model)
    assert len(names) == 2 * 8
    assert "deberta.encoder.layer.1.attention.self.pos_key_proj" in names
    assert not any(name.startswith(("classifier", "pooler")) for name in names)


def test_maps_survive_copy_and_pickle_and_can_be_keys():
    arch = resolve(tiny_model("bart"))
    assert pickle.loads(pickle.dumps(arch)) == copy.deepcopy(arch) == arch
    assert len({arch.stacks[0], arch.stacks[1], arch.stacks[0]}) == 2
