"""TRL's trainers have lists of columns of their own, pack rows, and put a loss in place of the model's ``forward``."""

import pytest
import torch
import transformers
import trl
from datasets import Dataset

import hfadapt
from hfadapt.errors import AttachError, RoutingError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, about themselves

NAMES = ("one", "two")
TOKENS = [{"input_ids": [5 + n, 6 + n, 7 + n, 8 + n], "task_ids": n % 2} for n in range(12)]
TEXTS = [{"text": f"w{n} w{n + 1} w{n + 2}", "task_ids": NAMES[n % 2]} for n in range(12)]
PROMPTS = [{"prompt": f"w{n}", "completion": f" w{n + 1} w{n + 2}", "task_ids": n % 2} for n in range(12)]


class Keeping:
    """TRL's collator, and the column."""

    def __init__(self):
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        self.collate = DataCollatorForLanguageModeling(pad_token_id=0)

    def __call__(self, rows):
        return {**self.collate(rows), "task_ids": [row["task_ids"] for row in rows]}


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")

    def trainer(rows, method="lora", chosen="two", collator=None, attach=None, **options):
        model = tiny_model("llama", "causal-lm", seed=0)
        hfadapt.attach(model, method, names=NAMES, seed=0, **(attach or {}))
        hfadapt.activate(model, chosen)
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = "w0"
        options = {"max_length": 16, "max_steps": 2, "per_device_train_batch_size": 4, **options}
        arguments = trl.SFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, **options)
        return trl.SFTTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            data_collator=collator,
        )

    return trainer


def weights(model):
    return {name: {k: p.clone() for k, p in hfadapt.parameters_of(model, name).items()} for name in NAMES}


def moved(model, before):
    after = weights(model)
    return {name for name in NAMES if any(not torch.equal(after[name][k], t) for k, t in before[name].items())}


@pytest.mark.parametrize("rows", [TOKENS, TEXTS, PROMPTS], ids=["tokens", "texts", "prompts"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": True},
        {"packing": True, "packing_strategy": "wrapped"},
        {"padding_free": True, "max_length": None},
        {"remove_unused_columns": False},
        {"completion_only_loss": False},
        {"packing": True, "gradient_checkpointing": False},
    ],
    ids=lambda options: " ".join(map(str, options)) or "plain",
)
@pytest.mark.parametrize("chosen", ["two", None])
def test_a_lost_column_stops_training_before_the_first_step(make, rows, options, chosen):
    made = make(rows, chosen=chosen, **options)
    before = weights(made.model)
    with pytest.raises(RoutingError, match="'task_ids', which"):
        made.train()
    assert made.state.global_step == 0 and not moved(made.model, before)
    with pytest.raises(RoutingError, match="'task_ids', which"):
        made.evaluate()


@pytest.mark.parametrize("method", ["lora", "mam", "pal", "low_rank"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_each_row_trains_its_own_adapter_where_the_collator_keeps_the_column(make, method, checkpointing):
    for rows, trained in ((TOKENS, set(NAMES)), (TOKENS[1::2], {"two"}), (TOKENS[::2], {"one"})):
        made = make(
            rows,
            method,
            collator=Keeping(),
            remove_unused_columns=False,
            gradient_checkpointing=checkpointing,
            learning_rate=1e-2,
        )
        before = weights(made.model)
        made.train()
        assert moved(made.model, before) == trained
        assert made.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("packing", [False, True], ids=["", "packed"])
def test_data_without_the_column_trains_what_is_active(make, packing):
    rows = [{"input_ids": row["input_ids"]} for row in TOKENS]
    made = make(rows, packing=packing, learning_rate=1e-2)
    before = weights(made.model)
    made.train()
    assert moved(made.model, before) == {"two"}
    hfadapt.activate(made.model, None)
    with pytest.raises(RoutingError, match="nothing would learn"):
        made.train()


@pytest.mark.parametrize("packing", [False, True], ids=["", "packed"])
def test_packed_rows_of_a_model_that_nobody_asks_for_its_signature_are_told(make, packing, monkeypatch, caplog):
    """As transformers' models of text and images are."""
    monkeypatch.setattr(transformers.LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    made = make(TOKENS, packing=packing)
    if packing:
        made.train()
        (said,) = [r.getMessage() for r in caplog.records if "task_ids" in r.getMessage()]
        assert "every row uses what is active of the adapters one, two" in said
    else:
        with pytest.raises(RoutingError, match="'task_ids', which"):
            made.train()


def test_adapters_at_the_head_are_refused_by_its_fused_loss(make):
    rows = [{"input_ids": row["input_ids"]} for row in TOKENS]
    made = make(rows, attach={"modules_to_save": ["lm_head"]})
    with pytest.raises(AttachError, match=r"does not run every module.*lm_head"):
        made.train()
