"""transformers' report of a base's checkpoint: nothing is newly initialised that the folder brings."""

from __future__ import annotations

import logging
import threading

import pytest
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

import hfadapt
from hfadapt.adapters.loading_report import read_base
from hfadapt.errors import HFAdaptError
from hfadapt.testing.tiny import tiny_model

REPORT = "LOAD REPORT"
LOGGER = logging.getLogger("transformers.modeling_utils")
warn = LOGGER.warning


@pytest.fixture
def base(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def reports():
    """What transformers logs of checkpoints; its loggers hand nothing on to pytest's."""
    found = []

    class Watch(logging.Handler):
        def emit(self, record):
            if REPORT in record.getMessage():
                found.append(record.getMessage())

    watch, before = Watch(), list(LOGGER.filters)
    LOGGER.addHandler(watch)
    yield found
    LOGGER.removeHandler(watch)
    assert LOGGER.filters == before


@pytest.fixture
def with_head(base, reports):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    assert "classifier.weight" in reports[0]  # which is true of the stock model
    hfadapt.attach(model, "lora", "a")
    hfadapt.save(model, base.parent / "a")
    reports.clear()
    return base.parent / "a"


@pytest.mark.parametrize("load", [hfadapt.load, AutoModelForSequenceClassification.from_pretrained])
def test_a_head_that_the_folder_brings_is_not_called_new(with_head, reports, load):
    assert load(with_head).config.num_labels == 3
    assert not reports


def test_a_head_of_several_tasks_base_is_not_called_new(base, reports):
    stock = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = hfadapt.MultiTaskModel.from_base(stock, [hfadapt.Task("t", hfadapt.OwnHead())], "lora")
    model.save_pretrained(base.parent / "own")
    reports.clear()
    hfadapt.MultiTaskModel.from_pretrained(base.parent / "own")
    assert not reports


def test_a_head_that_nobody_brings_is_called_new(base, reports):
    stock = AutoModelForMaskedLM.from_pretrained(base)
    hfadapt.attach(stock, "lora", "a")
    hfadapt.save(stock, base.parent / "a")
    (said,) = reports
    reports.clear()
    hfadapt.load(base.parent / "a")
    assert reports == [said]


def test_a_failed_load_keeps_its_report(base, reports):
    def read(path, **options):
        warn("a LOAD REPORT of mine")
        raise OSError("the disk is gone")

    with pytest.raises(HFAdaptError, match="the disk is gone"):
        read_base(read, str(base), ["head.classifier.weight"])
    assert reports == ["a LOAD REPORT of mine"]


def test_other_threads_keep_their_reports(base, reports):
    def read(path, **options):
        warn("a LOAD REPORT of mine")
        other = threading.Thread(target=warn, args=("a LOAD REPORT of theirs",))
        other.start()
        other.join()
        return "the model", {"missing_keys": {"classifier.weight"}, "mismatched_keys": set()}

    assert read_base(read, str(base), ["head.classifier.weight"]) == "the model"
    assert reports == ["a LOAD REPORT of theirs"]


def test_a_head_in_a_folder_of_peft_is_not_called_new(base, reports):
    peft = pytest.importorskip("peft", reason="writes the folder")
    stock = AutoModelForSequenceClassification.from_pretrained(base)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["classifier"])
    theirs = peft.get_peft_model(stock, config)
    theirs.save_pretrained(base.parent / "theirs")
    reports.clear()
    mine = hfadapt.load(base.parent / "theirs")
    assert not reports
    own = hfadapt.own_modules(mine, "default")["classifier"]
    assert own.weight.equal(theirs.base_model.model.classifier.modules_to_save["default"].weight)


def test_a_head_that_a_folder_of_peft_lacks_is_called_new(base, reports):
    peft = pytest.importorskip("peft", reason="writes the folder")
    stock = AutoModelForMaskedLM.from_pretrained(base)
    peft.get_peft_model(stock, peft.LoraConfig(target_modules=["query"])).save_pretrained(base.parent / "theirs")
    (said,) = reports
    reports.clear()
    hfadapt.load(base.parent / "theirs")
    assert reports == [said]
