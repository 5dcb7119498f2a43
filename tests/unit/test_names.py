"""One name is a name, wherever a list of names is taken: a string is never read letter by letter."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import hfadapt
from hfadapt import Classification, RobustAdapterDrop, Task
from hfadapt.adapters.save import save
from hfadapt.data.glue import glue_tasks
from hfadapt.errors.names import names_of
from hfadapt.inference.engine import Engine
from hfadapt.inference.predict import Predictor
from hfadapt.recipes.config import load_recipe, read_recipe
from hfadapt.testing.conformance import Case, cases
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_batch, toy_model, toy_tasks
from hfadapt_plugins.methods.bottleneck import Bottleneck
from hfadapt_plugins.methods.design import Design
from hfadapt_plugins.methods.fusion import add_fusion
from hfadapt_plugins.methods.lora import LoRA
from hfadapt_plugins.methods.pal.script_names import base_name
from hfadapt_plugins.methods.pal.script_options import BERT_FIELDS
from hfadapt_plugins.methods.parallel import ParallelConfig
from hfadapt_plugins.methods.prefix import PrefixConfig
from hfadapt_plugins.regularizers.smart import SMART


@pytest.mark.parametrize("given", ["ab", ["ab"], ("ab",), {"ab"}, iter(["ab"])])
def test_a_name_and_a_list_of_one_are_the_same(given) -> None:
    assert names_of(given) == ("ab",)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: RobustAdapterDrop(stacks="encoder").stacks, ("encoder",)),
        (lambda: Task("t", Classification(2), metrics="f1").metrics, ("f1",)),
        (lambda: [task.name for task in glue_tasks("cola")], ["cola"]),
    ],
    ids=["stacks", "metrics", "glue"],
)
def test_one_name_where_a_list_is_taken(found, expected) -> None:
    assert found() == expected


def test_attach_save_and_detach_take_one_name(tmp_path) -> None:
    model = tiny_model("bert")
    hfadapt.attach(model, "lora", names="ab")
    hfadapt.attach(model, "lora", names=["a", "b"])
    assert list(hfadapt.attachment(model).names) == ["ab", "a", "b"]
    hfadapt.detach(model, "ab")
    assert list(hfadapt.attachment(model).names) == ["a", "b"]
    with pytest.raises(hfadapt.HFAdaptError, match="'ab'"):
        save(model, tmp_path / "x", "ab")


# Rooms and modules whose names users call; what stands in none of them is called by hfadapt itself.
PUBLIC = (
    "hfadapt",
    "hfadapt.data",
    "hfadapt.data.glue",
    "hfadapt.inference.predict",
    "hfadapt.method",
    "hfadapt.multitask.heads",
    "hfadapt.recipes.config",
    "hfadapt.recipes.evaluate",
    "hfadapt.routing",
    "hfadapt.testing.conformance",
    "hfadapt.testing.toy",
    "hfadapt.training",
    "hfadapt.training.regularizers",
    *(f"hfadapt_plugins.methods.{name}" for name in ("bottleneck", "design", "fusion", "lora", "parallel", "prefix")),
)
LISTS = re.compile(r"\b(Sequence|Iterable|Collection|[Ll]ist|[Tt]uple|[Ss]et)\[(str|Task|Any|MethodConfig)\b")
# What a delta, a head or a step is handed by hfadapt, and fields of what hfadapt returns or reads from its own files.
NOT_THE_USERS = {
    *("FusionLayer", "ByHeadDelta.weights"),
    *(f"Delta.{name}" for name in ("each", "optional_weights", "scales", "weights")),
    *("Capabilities.ops", "CompositionMethod.restore", "Handle", "FusionMethod.restore", "MultiTaskModel.__init__"),
    *("Rows", "Routing", "Routing.rows", "HFAdaptConfig", "Adapter", "Preview", "tensors_of", "RunResult", "ArmResult"),
    *(
        "Head.check_labels",
        "FusionPart",
        "Macro",
        "MultiTaskModel",
        "Scored",
        "macro_of",
        "MethodPreset",
        "SplitDataset",
        "MultiTaskCollator",
        "Step",
        "MultiTaskMetrics",
    ),
    *(f"{h}.check_labels" for h in ("Classification", "MultiLabel", "OwnHead", "Regression", "Span")),
    *("TokenClassification.check_labels", "Capabilities", "Combined", "Recipe", "expand"),
}


def listed(name: str, thing: Any) -> Iterator[str]:
    """Yield ``name.parameter`` for every parameter that takes a list of names, tasks or methods."""
    if name in NOT_THE_USERS:
        return
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return
    for one in parameters:
        if LISTS.search(str(one.annotation)):
            yield f"{name}.{one.name}"


def every_list() -> set[str]:
    found: set[str] = set()
    for path in PUBLIC:
        module = importlib.import_module(path)
        for name in module.__all__:
            thing = getattr(module, name)
            if not str(getattr(thing, "__module__", "")).startswith("hfadapt"):
                continue
            found.update(listed(name, thing))
            for own, member in vars(thing).items() if inspect.isclass(thing) else ():
                function = getattr(member, "__func__", member)
                if not own.startswith("_") and inspect.isfunction(function):
                    found.update(listed(f"{name}.{own}", function))
    return found


def adapted() -> Any:
    model = tiny_model("bert")
    for name in ("ab", "a", "b"):
        hfadapt.attach(model, "lora", name, verify=False)
    return model


def on(act: Any, seen: Any = None) -> Any:
    """What an adapted model shows after ``act`` on it."""
    model = adapted()
    made = act(model)
    return made if seen is None else seen(model)


def names(model: Any) -> tuple[str, ...]:
    return tuple(hfadapt.attachment(model).names)


def trained(model: Any) -> set[str]:
    return {n for n in names(model) if any(p.requires_grad for p in hfadapt.parameters_of(model, n).values())}


def answered(texts: Any, tasks: Any, pairs: Any = None, kind: Any = Predictor) -> list[tuple[str, str, str | None]]:
    one = kind(toy_model(), tiny_tokenizer())
    return [(found.task, found.text, found.text_pair) for found in one.predict(texts, tasks, pairs)]


def checked(*asked: Any) -> None:
    Engine(toy_model(), tiny_tokenizer()).check(*asked)


def engine_of(folder: Any) -> Engine:
    from_folder(folder).save_pretrained(folder / "saved")
    return Engine.from_pretrained(str(folder / "saved"), tokenizer=tiny_tokenizer())


RECIPE = "model: bert-base-uncased\ntasks: [{name: rte}]\nmethod: lora\n"
ONE_TASK = Task("ab", Classification(2))


def saved_names(model: Any, folder: Any) -> tuple[str, ...]:
    save(model, folder, "ab")
    return names(hfadapt.load(folder, tiny_model("bert")))


def scored(folder: Any) -> list[str]:
    """Which tasks were looked for: there is none of that name, nor of its letters."""
    from hfadapt.recipes.evaluate import evaluate_folder

    from_folder(folder, [Task("a", Classification(2)), Task("b", Classification(2))]).save_pretrained(folder / "saved")
    tiny_tokenizer().save_pretrained(folder / "saved")
    with pytest.raises(hfadapt.HFAdaptError) as caught:
        evaluate_folder(folder / "saved", {}, "ab", "test", 2)
    return re.findall(r"no task '(\w+)'", str(caught.value))


def stands_in_recipe(line: str) -> Any:
    return read_recipe(RECIPE.replace("name: rte", f"name: rte, {line}")).tasks[0]


def script_tasks(folder: Any) -> list[str]:
    """The tasks of a checkpoint of the PALs paper's script that has one."""
    bert = tiny_model("bert")
    weights = {base_name(name): tensor.detach() for name, tensor in bert.named_parameters()}
    weights |= {"classifier.0.weight": torch.zeros(2, bert.config.hidden_size), "classifier.0.bias": torch.zeros(2)}
    torch.save(weights, folder / "model.bin")
    (folder / "config.json").write_text(json.dumps({key: getattr(bert.config, key) for key in BERT_FIELDS}))
    made = hfadapt.load_bert_n_pals(folder / "model.bin", folder / "config.json", tasks="ab")
    return [task.name for task in made.tasks]


# Each public parameter that takes a list of names: what one name in its place does, and what it is to do.
ONE_NAME: dict[str, tuple[Any, Any]] = {
    "Bottleneck.on": (lambda tmp: Bottleneck(on="ffn").on, ("ffn",)),
    "Case.adapted.names": (lambda tmp: names(cases("lora", "bert")[0].adapted("ab")), ("ab",)),
    "Case.method": (lambda tmp: [config.method for config in Case("lora", "bert").configs], ["lora"]),
    "Design.attention": (lambda tmp: Design(attention="self").attention, ("self",)),
    "Design.modified": (lambda tmp: Design(modified="ffn").modified, ("ffn",)),
    "Engine.check.pairs": (lambda tmp: checked("w1 w2", "same", "w3 w4"), None),
    "Engine.check.tasks": (lambda tmp: checked(["w1"], "topic"), None),
    "Engine.check.texts": (lambda tmp: checked("w1 w2", ["topic"]), None),
    "Engine.from_pretrained.folders": (lambda tmp: engine_of(tmp).tasks[0].name, "ab"),
    "Engine.predict.pairs": (lambda tmp: answered("w1 w2", "same", "w3 w4", Engine), [("same", "w1 w2", "w3 w4")]),
    "Engine.predict.tasks": (lambda tmp: answered(["w1"], "topic", None, Engine), [("topic", "w1", None)]),
    "Engine.predict.texts": (lambda tmp: answered("w1 w2", ["topic"], None, Engine), [("topic", "w1 w2", None)]),
    "Engine.predict_all.tasks": (
        lambda tmp: [one.task for one in Engine(toy_model(), tiny_tokenizer()).predict_all("w1", "topic")],
        ["topic"],
    ),
    "LoRA.target_modules": (lambda tmp: LoRA(target_modules="query").target_modules, ("query",)),
    "MultiTaskModel.forward.task_ids": (
        lambda tmp: toy_model()(**tiny_inputs("bert"), task_ids="same").task_ids.unique().tolist(),
        [2],
    ),
    "MultiTaskModel.from_base.tasks": (
        lambda tmp: hfadapt.MultiTaskModel.from_base(tiny_model("bert"), ONE_TASK, "lora").tasks,
        (ONE_TASK,),
    ),
    "MultiTaskModel.from_pretrained.tasks": (lambda tmp: from_folder(tmp).tasks, (ONE_TASK,)),
    "ParallelConfig.sublayers": (lambda tmp: ParallelConfig(sublayers="ffn").sublayers, ("ffn",)),
    "Predictor.predict.pairs": (lambda tmp: answered("w1 w2", "same", "w3 w4"), [("same", "w1 w2", "w3 w4")]),
    "Predictor.predict.tasks": (lambda tmp: answered(["w1"], "topic"), [("topic", "w1", None)]),
    "Predictor.predict.texts": (lambda tmp: answered("w1 w2", ["topic"]), [("topic", "w1 w2", None)]),
    "Predictor.predict_all.tasks": (
        lambda tmp: [one.task for one in Predictor(toy_model(), tiny_tokenizer()).predict_all("w1", "topic")],
        ["topic"],
    ),
    "PrefixConfig.attention": (lambda tmp: PrefixConfig(attention="self").attention, ("self",)),
    "Regularizer.require_one_of.allowed": (lambda tmp: refused(SMART(), "weight", "11"), "allowed: '11'"),
    "RobustAdapterDrop.stacks": (lambda tmp: RobustAdapterDrop(stacks="encoder").stacks, ("encoder",)),
    "Task.label_names": (lambda tmp: refusal(lambda: Task("t", Classification(3), label_names="abc")), "got: 1 names"),
    "Task.metrics": (lambda tmp: Task("t", Classification(2), metrics="f1").metrics, ("f1",)),
    "TaskMixture.dataset.tasks": (lambda tmp: len(mixture().dataset("train", "topic")), 64),
    "TaskMixture.tasks": (
        lambda tmp: [t.name for t in hfadapt.TaskMixture(toy_tasks()[0], tiny_tokenizer()).tasks],
        ["topic"],
    ),
    "TaskSection.label_names": (lambda tmp: stands_in_recipe("label_names: ab").label_names, ("ab",)),
    "TaskSection.metrics": (lambda tmp: stands_in_recipe("metrics: accuracy").metrics, ("accuracy",)),
    "activate.choice": (lambda tmp: on(lambda m: hfadapt.activate(m, "ab"), lambda m: m._hfadapt.active), "ab"),
    "active.choice": (lambda tmp: on(lambda m: inside(m, "ab")), True),
    "add_fusion.node": (lambda tmp: refusal(lambda: on(lambda m: add_fusion(m, "ab"))), "got: ('ab',)"),
    "add_router.node": (lambda tmp: refusal(lambda: on(lambda m: hfadapt.add_router(m, "ab"))), "got: ('ab',)"),
    "attach.method": (lambda tmp: attached("lora").configs[0].method, "lora"),
    "attach.modules_to_save": (lambda tmp: attached("lora", modules_to_save="pooler").modules, ("pooler",)),
    "attach.names": (lambda tmp: attached("lora").name, "ab"),
    "cases.methods": (lambda tmp: list(map(str, cases("lora", ["bert"]))), ["lora-bert"]),
    "cases.model_types": (lambda tmp: list(map(str, cases([LoRA()], "bert"))), ["lora-bert"]),
    "detach.names": (lambda tmp: on(lambda m: hfadapt.detach(m, "ab"), names), ("a", "b")),
    "evaluate_folder.tasks": (scored, ["ab"]),
    "fit_weights.adapters": (lambda tmp: on(weights_of_one), {"ab": 1.0}),
    "freeze.names": (lambda tmp: on(lambda m: hfadapt.freeze(m, "ab"), trained), {"a", "b"}),
    "glue_tasks.names": (lambda tmp: [task.name for task in glue_tasks("cola")], ["cola"]),
    "load_recipe.overrides": (lambda tmp: load_recipe(written(tmp), "seed=3").seed, 3),
    "read_recipe.overrides": (lambda tmp: read_recipe(RECIPE, "seed=3").seed, 3),
    "save.names": (lambda tmp: on(lambda m: saved_names(m, tmp / "saved")), ("ab",)),
    "toy_batch.names": (lambda tmp: toy_batch(names="topic")["task_ids"].tolist(), [0]),
    "toy_batch.tasks": (lambda tmp: toy_batch(toy_tasks()[0])["task_ids"].tolist(), [0]),
    "toy_model.tasks": (lambda tmp: [task.name for task in toy_model(toy_tasks()[0]).tasks], ["topic"]),
    "unfreeze.names": (lambda tmp: on(lambda m: (hfadapt.freeze(m), hfadapt.unfreeze(m, "ab")), trained), {"ab"}),
    "verify.names": (lambda tmp: on(lambda m: hfadapt.verify(m, "ab") == hfadapt.verify(m, ["ab"]) > 0), True),
}


def weights_of_one(model: Any) -> Any:
    data = tiny_inputs("bert")
    return hfadapt.fit_weights(model, "ab", data, 1, loss=lambda one, batch: one(**batch)[0].mean())


def from_folder(tmp: Any, tasks: Any = ONE_TASK) -> Any:
    tiny_model("bert").save_pretrained(tmp / "base")
    return hfadapt.MultiTaskModel.from_pretrained(tmp / "base", tasks=tasks, method="lora")


def refusal(act: Any) -> str:
    with pytest.raises(hfadapt.HFAdaptError) as caught:
        act()
    return str(caught.value)


def refused(config: Any, name: str, allowed: str) -> str:
    return refusal(lambda: config.require_one_of(name, allowed))


def inside(model: Any, name: str) -> bool:
    with hfadapt.active(model, name):
        shown = model(**tiny_inputs("bert"))[0]
    return bool(shown.equal(model(**tiny_inputs("bert"), task_ids=[name] * 3)[0]))


def attached(method: Any, **options: Any) -> Any:
    model = tiny_model("bert")
    hfadapt.attach(model, method, names="ab", verify=False, **options)
    return hfadapt.attachment(model).adapters["ab"]


def mixture(tasks: Any = None) -> Any:
    return hfadapt.TaskMixture(tasks or toy_tasks(), tiny_tokenizer())


def written(tmp: Any) -> Any:
    (tmp / "recipe.yaml").write_text(RECIPE)
    return tmp / "recipe.yaml"


def test_every_list_of_names_stands_here() -> None:
    assert every_list() == set(ONE_NAME)


@pytest.mark.parametrize("parameter", ONE_NAME)
def test_one_name_is_a_name(parameter: str, tmp_path: Any) -> None:
    act, expected = ONE_NAME[parameter]
    found = act(tmp_path)
    assert expected in found if isinstance(found, str) and isinstance(expected, str) else found == expected


def test_a_list_where_one_name_is_taken_is_refused() -> None:
    for act in (
        lambda m: hfadapt.merge(m, ["a"]),
        lambda m: hfadapt.parameters_of(m, ["a"]),
        lambda m: hfadapt.compose(m, "c", ("a", "b")),
        lambda m: hfadapt.activate(m, hfadapt.Stack(["a", "b"])),
    ):
        with pytest.raises(hfadapt.HFAdaptError):
            on(act)
