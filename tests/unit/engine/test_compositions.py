"""Tasks that use parts of one another are served: Arrow and Router beside adapters of their own, and MTL-LoRA."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt import Arrow, Average, Classification, Engine, MultiTaskModel, Router, Stack, Task
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import ask, saved, text

LORAS = ("news", "mail", "chat")
ROUTES = {
    "arrow": Arrow(*LORAS, top_k=2, temperature=0.5),
    "router": Router(*LORAS, top_k=2),
    "best": Router(*LORAS, top_k=1),
    "mean": Average("news", "mail"),
    "both": Stack("mail", Arrow("news", "chat")),
}
REQUESTS = [(text(words, 5 * words), name, None) for words in (3, 14) for name in (*ROUTES, "mail")]


@pytest.fixture(scope="module")
def folder(base_folder):
    tasks = [Task(name, Classification(3)) for name in (*LORAS, *ROUTES)]
    model = MultiTaskModel.from_pretrained(str(base_folder), tasks=tasks, method="lora")
    hfadapt.detach(model.base, list(LORAS))
    for name in LORAS:
        hfadapt.attach(model.base, hfadapt.LoRA(r=2 + LORAS.index(name)), name, verify=False)
    hfadapt.add_router(model, LORAS, activate_it=False)
    torch.manual_seed(3)
    randomize(model.base)
    for parameter in (*model.heads.parameters(), *model.base.hfadapt_shared.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    for task, node in ROUTES.items():
        model.use(task, node)
    model.save_pretrained(base_folder.parent / "routed")
    return base_folder.parent / "routed"


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.from_pretrained(folder)


@pytest.fixture(scope="module")
def alone(engine):
    return [ask(engine, [one])[0] for one in REQUESTS]


def test_answers_are_the_models_own(folder, alone):
    model, tokenizer = MultiTaskModel.from_pretrained(folder).eval(), tiny_tokenizer()
    for (words, task, _), answer in zip(REQUESTS, alone, strict=True):
        with torch.no_grad():
            output = model(**tokenizer(words, return_tensors="pt"), task_ids=[task])
        scores = torch.softmax(model.logits_of(output, task)[0], -1)
        torch.testing.assert_close(torch.tensor(list(answer.scores.values())), scores, rtol=1e-4, atol=1e-6)
    assert len({str(one.scores) for one in alone}) == len(alone)


def test_an_answer_keeps_its_bits_beside_any_others(engine, alone):
    order = [*range(5, len(REQUESTS)), *range(5)]
    assert ask(engine, [REQUESTS[i] for i in order]) == [alone[i] for i in order]
    assert any(shape["used"] and shape["rows"] > 1 for shape in engine.shapes())


def test_named_compositions_of_a_folder_of_adapters_are_tasks(tmp_path):
    model = tiny_model("bert", "sequence-classification", num_labels=3)
    for number, name in enumerate(LORAS):
        hfadapt.attach(model, hfadapt.LoRA(r=2 + number), name, verify=False)
    hfadapt.add_router(model, LORAS, activate_it=False)
    randomize(model)
    for name in ("arrow", "router"):
        hfadapt.compose(model, name, ROUTES[name])
    hfadapt.save(model, tmp_path)
    base = tiny_model("bert", "sequence-classification", num_labels=3)
    base.load_state_dict(model.state_dict(), strict=False)
    engine = Engine.from_pretrained(tmp_path, base=base, tokenizer=tiny_tokenizer())
    assert [task.name for task in engine.tasks] == [*LORAS, "arrow", "router"]
    inputs = tiny_tokenizer()("w1 w2 w3", return_tensors="pt")
    found = engine.predict(["w1 w2 w3"] * 3, ["arrow", "mail", "router"])
    for answer in found:
        with torch.no_grad():
            logits = model.eval()(**inputs, task_ids=answer.task).logits[0]
        got = torch.tensor(list(answer.scores.values()))
        torch.testing.assert_close(got, logits.softmax(-1), rtol=1e-4, atol=1e-6)


def test_tasks_that_share_an_update_are_served_beside_each_other(base_folder):
    tasks = [Task(name, Classification(3)) for name in LORAS]
    saved(base_folder, base_folder.parent / "shared", tasks, hfadapt.MTLLoRA(r=2, n_up=2))
    engine = Engine.from_pretrained(base_folder.parent / "shared")
    requests = [(text(words, 5 * words), name, None) for words in (3, 14) for name in LORAS]
    alone = [ask(engine, [one])[0] for one in requests]
    assert ask(engine, requests[::-1]) == alone[::-1] and len({str(one.scores) for one in alone}) == len(alone)
    model, tokenizer = MultiTaskModel.from_pretrained(base_folder.parent / "shared").eval(), tiny_tokenizer()
    for (words, task, _), answer in zip(requests, alone, strict=True):
        with torch.no_grad():
            output = model(**tokenizer(words, return_tensors="pt"), task_ids=[task])
        scores = torch.softmax(model.logits_of(output, task)[0], -1)
        torch.testing.assert_close(torch.tensor(list(answer.scores.values())), scores, rtol=1e-4, atol=1e-6)
    engine.remove("mail")
    kept = [number for number, (_, name, _) in enumerate(requests) if name != "mail"]
    assert ask(engine, [requests[i] for i in kept]) == [alone[i] for i in kept]


def test_a_server_gives_the_same_answers(engine, alone):
    for name in ("fastapi", "httpx", "prometheus_client"):
        pytest.importorskip(name, reason="the extra serve")
    from starlette.testclient import TestClient

    from hfadapt.inference.serving.app import make_app

    with TestClient(make_app(engine)) as client:
        texts, tasks, _ = map(list, zip(*REQUESTS, strict=True))
        answers = client.post("/predict", json={"texts": texts, "tasks": tasks}).json()["answers"]
    assert [one["scores"] for one in answers] == [one.scores for one in alone]
