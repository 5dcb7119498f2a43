"""A base without a tokenizer is refused: what transformers makes up for it knows no words."""

import pytest

from hfadapt import Classification, Task, TaskMixture
from hfadapt.data.tokenizer import load_tokenizer
from hfadapt.errors import DataError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer

TASK = Task("t", Classification(2), data=[{"text": "w1", "label": 0}, {"text": "w2", "label": 1}])


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "t5", "deberta-v2"])
def test_a_base_folder_without_a_tokenizer_is_refused(tmp_path, kind):
    tiny_model(kind).save_pretrained(tmp_path)
    for use in (load_tokenizer, lambda folder: TaskMixture([TASK], str(folder))):
        with pytest.raises(DataError, match=r"no tokenizer can be loaded|knows no words"):
            use(tmp_path)


def test_one_that_was_made_up_is_refused_when_it_is_handed_over(tmp_path):
    import transformers

    tiny_model("bert").save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"knows no words.*5 tokens"):
        TaskMixture([TASK], transformers.AutoTokenizer.from_pretrained(tmp_path))


def test_the_bases_own_is_loaded(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path)) == len(tiny_tokenizer())
