"""Which adapter each row uses: how many ids a call takes, rows of the base alone, averages, threads, choices."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from transformers import BertForMultipleChoice

import hfadapt
from hfadapt.errors import RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

INPUTS = tiny_inputs("bert", padding="right")
BASE_FORMS = {"none": None, "name": "__base__", "number": -1}


def adapted(model_type="bert", head="", method="lora", names=("one", "two"), **changes):
    model = tiny_model(model_type, head or None, **changes)
    hfadapt.attach(model, method, names=names, seed=0)
    randomize(model)
    return model.eval()


@torch.no_grad()
def run(model, **options):
    return model(**INPUTS, **options)[0]


@pytest.mark.parametrize(
    "ids",
    [
        ["one", "two"],
        ["one"],
        ["one", "two"] * 3,
        ["one"] * 6,
        torch.tensor([0]),
        torch.tensor([0, 1]),
        torch.tensor([1] * 6),
        np.array([0, 1]),
        (),
        True,
        [True, False, True],
        [np.bool_(True), 1, 0],
        torch.tensor(True),
        torch.tensor([True, False, True]),
        b"one",
        {"one": 1},
        [["one"], ["two"], ["one"]],
        2.0,
    ],
    ids=repr,
)
def test_ids_that_are_not_one_a_row_are_refused(ids):
    model = adapted()
    with pytest.raises(RoutingError, match="task ids for 3 rows|bad task"):
        run(model, task_ids=ids)


def test_every_form_of_ids_is_read():
    model = adapted()
    want = run(model, task_ids=["one", "two", "one"])
    forms = [(0, 1, 0), np.array([0, 1, 0]), torch.tensor([0, 1, 0], dtype=torch.int32), [np.int64(0), "two", 0]]
    for form in forms:
        assert torch.equal(run(model, task_ids=form), want)
    for one in (1, np.int64(1), torch.tensor(1), "two", ["two"] * 3):
        assert torch.equal(run(model, task_ids=one), run(model, task_ids=["two"] * 3))


def test_an_argument_that_all_rows_share_does_not_count_as_rows():
    model = adapted()
    positions = torch.arange(INPUTS["input_ids"].shape[1])[None]
    with torch.no_grad():
        shared = model(position_ids=positions, **INPUTS, task_ids=["one", "two", "one"])[0]
    assert torch.equal(shared, run(model, task_ids=["one", "two", "one"]))


@pytest.mark.parametrize("given", [["one", "two"], ["one"], ["one"] * 6, torch.tensor([0, 1]), [True, False, True]])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 2}], ids=str)
def test_generate_takes_one_id_a_prompt(given, options):
    model = adapted("gpt2", "causal-lm")
    model.generation_config.pad_token_id = 0
    inputs = tiny_inputs("gpt2", "causal-lm", padding="left")
    assert len(inputs["input_ids"]) == 3
    with pytest.raises(RoutingError, match="task ids for 3 rows|bad task"):
        model.generate(**inputs, max_new_tokens=3, task_ids=given, **options)
    with hfadapt.active(model, ["one", "two"]), pytest.raises(RoutingError, match="2 task ids for 3 rows"):
        model.generate(**inputs, max_new_tokens=3, **options)
    mixed = model.generate(**inputs, max_new_tokens=3, task_ids=["one", None, "two"], **options)
    with hfadapt.active(model, ["one", None, "two"]):
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, **options), mixed)
    with hfadapt.active(model, None):
        base = model.generate(**inputs, max_new_tokens=3, **options)
    each = len(base) // 3
    assert torch.equal(mixed[each : 2 * each], base[each : 2 * each])


def test_choices_of_one_question_share_its_id():
    model = BertForMultipleChoice(tiny_model("bert").config).eval()
    hfadapt.attach(model, "lora", names=("one", "two"), verify=False)
    randomize(model)
    inputs = {k: v[:, None].repeat(1, 4, 1) for k, v in INPUTS.items()}
    with torch.no_grad():
        mixed = model(**inputs, task_ids=["one", None, "two"]).logits
        assert torch.equal(mixed[2], model(**{k: v[2:] for k, v in inputs.items()}, task_ids="two").logits[0])
        with pytest.raises(RoutingError, match="12 task ids for 3 rows"):
            model(**inputs, task_ids=["one"] * 12)


@pytest.mark.parametrize("form", BASE_FORMS)
@pytest.mark.parametrize("method", ["lora", "pfeiffer", "mam", "pal", "prefix", "unipelt", "par_bn", "low_rank"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_rows_without_an_adapter_stand_in_any_batch(model_type, method, form):
    try:
        model = adapted(model_type, method=method)
    except hfadapt.errors.AttachError:
        pytest.skip(f"{method} is not for {model_type}")
    none, inputs = BASE_FORMS[form], tiny_inputs(model_type)

    @torch.no_grad()
    def rows(ids):
        return model(**inputs, task_ids=ids)[0]

    with hfadapt.active(model, None):
        base = rows(None)
    alone = rows("two")
    mixed = rows([none, "two", "one"])
    torch.testing.assert_close(mixed[0], base[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed[1], alone[1], rtol=1e-5, atol=1e-6)
    hfadapt.activate(model, "one")
    assert torch.equal(rows([none] * 3), base) and torch.equal(rows(none if none is not None else -1), base)
    assert torch.equal(rows(torch.tensor([-1, -1, -1])), base)


def test_rows_without_an_adapter_compile():
    model = adapted(num_hidden_layers=1)  # a trace takes its time for each layer
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for ids in ([0, -1, 1], [-1, -1, -1], [1, 1, 0]):
        ids = torch.tensor(ids)
        torch.testing.assert_close(run(compiled, task_ids=ids), run(model, task_ids=ids))


def test_choices_of_a_thread_are_seen_by_a_compiled_model():
    model = adapted(num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for name in ("one", "two", "one", None):
        with hfadapt.active(model, name):
            torch.testing.assert_close(run(compiled), run(model))
    with pytest.raises(Exception, match="none was chosen"):
        run(compiled)


@pytest.mark.parametrize("model_type", ["opt", "bert", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "pfeiffer", "prefix"])
def test_an_average_serves_its_rows_in_a_mixed_batch(model_type, method):
    model = adapted(model_type, method=method)
    hfadapt.compose(model, "mean", hfadapt.Average("one", "two", weights=(0.3, 0.6)))
    inputs = tiny_inputs(model_type)

    @torch.no_grad()
    def rows(ids, **cut):
        return model(**(cut or inputs), task_ids=ids)[0]

    mixed, alone = rows(["mean", "one", None]), {name: rows(name) for name in ("mean", "one", "__base__")}
    for row, name in enumerate(alone):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-5, atol=1e-6)
    # as many rows as the hidden state is wide
    many = {k: v[:1].repeat(32, 1) for k, v in inputs.items()}
    wide = rows(["mean", "one"] * 16, **many)
    torch.testing.assert_close(wide[:2], torch.stack([alone["mean"][0], alone["one"][0]]), rtol=1e-5, atol=1e-6)


def test_an_average_keeps_the_bits_of_other_rows_whatever_stands_in_its_own():
    model = adapted(method="prefix")
    hfadapt.compose(model, "mean", hfadapt.Average("one", "two"))
    want = run(model, task_ids=["mean", "two", "one"])
    for parameter in hfadapt.parameters_of(model, "two").values():
        parameter.data.fill_(float("nan"))
    got = run(model, task_ids=["mean", None, "one"])
    assert torch.isnan(got[0]).all() and torch.equal(got[2], want[2])


def test_active_is_a_threads_own_choice():
    model = adapted(names=("one", "two", "three"))
    nodes = ["one", "two", None, hfadapt.Stack("one", "two"), hfadapt.Average("two", "three"), ["one", None, "three"]]
    want = []
    for node in nodes:
        with hfadapt.active(model, node):
            want.append(run(model))
    hfadapt.activate(model, "three")
    default, wrong = run(model), []
    start = threading.Barrier(len(nodes))

    def work(place):
        start.wait()
        for _ in range(8):
            with hfadapt.active(model, nodes[place]):
                if not torch.equal(run(model), want[place]):
                    wrong.append(nodes[place])
            if not torch.equal(run(model), default):
                wrong.append("default")

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(nodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and model._hfadapt.active == "three"


def test_blocks_of_generators_may_end_in_any_order():
    model = adapted()
    want = {name: run(model, task_ids=name) for name in ("one", "two")}

    def stream(name):
        with hfadapt.active(model, name):
            while True:
                yield run(model)

    first, second = stream("one"), stream("two")
    assert torch.equal(next(first), want["one"]) and torch.equal(next(second), want["two"])
    first.close()
    assert torch.equal(next(second), want["two"])
    second.close()
    with pytest.raises(RoutingError, match="none was chosen"):
        run(model)


def test_a_block_is_for_one_model_and_not_for_its_copy():
    import copy

    model = adapted()
    other = copy.deepcopy(model)
    hfadapt.activate(other, "two")
    want = run(other)
    with hfadapt.active(model, "one"):
        assert torch.equal(run(other), want)


def test_what_is_named_inside_a_block_stays_and_what_is_activated_ends():
    model = adapted()
    with hfadapt.active(model, "one"):
        hfadapt.compose(model, "both", hfadapt.Stack("one", "two"))
        hfadapt.activate(model, "two")
        assert torch.equal(run(model), run(model, task_ids="two"))
    want = run(model, task_ids="both")
    with hfadapt.active(model, hfadapt.Stack("one", "two")):
        assert torch.equal(run(model), want)
    with pytest.raises(RoutingError, match="none was chosen"):
        run(model)


def test_new_compositions_leave_no_litter():
    model = adapted()
    state = model._hfadapt
    before = (dict(state.compositions), state.steps)
    for part in range(320):
        hfadapt.activate(model, hfadapt.Average("one", "two", weights=(part / 320, 1.0)))
    assert (state.compositions, state.steps) == before
    want = run(model)
    hfadapt.compose(model, "last", hfadapt.Average("one", "two", weights=(319 / 320, 1.0)))
    assert torch.equal(run(model, task_ids="last"), want)


def test_routes_survive_a_block_and_make_room_for_one_another():
    from hfadapt import Classification, MultiTaskModel, Task

    tasks = [Task(name, head=Classification(2)) for name in ("one", "two")]
    model = MultiTaskModel.from_base(tiny_model("bert"), tasks, "lora").eval()
    randomize(model.base)
    with hfadapt.active(model, "one"):
        model.use("one", hfadapt.Average("one", "two"))
    want = run_logits(model)
    assert not torch.equal(want[0], run_logits(model, use=("one", None))[0])
    for part in range(40):
        model.use("one", hfadapt.Average("one", "two", weights=(part, 1.0)))
    assert len(model._hfadapt.compositions) == 1
    model.use("two", model.routes["one"])
    model.use("one", hfadapt.Average("one", "two"))
    assert torch.equal(run_logits(model)[0], want[0])
    assert len(model._hfadapt.compositions) == 2


@torch.no_grad()
def run_logits(model, use=None):
    before = dict(model.routes)
    if use:
        model.use(*use)
    out = model(**INPUTS, task_ids=["one", "two", "one"]).logits
    model.routes = before
    return out


def test_detached_adapters_are_missed_by_a_block_that_names_them():
    model = adapted(names=("one", "two", "three"))
    for node in ("one", hfadapt.Stack("one", "two")):
        fresh = adapted(names=("one", "two", "three"))
        with hfadapt.active(fresh, node):
            hfadapt.detach(fresh, "one")
            with pytest.raises(hfadapt.errors.HFAdaptError, match="one"):
                run(fresh)
    assert run(model, task_ids="one").shape[0] == 3
