"""Texts of the bundled data sets in the order in which they come, of eight tasks: texts a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .case import Case, Rival, Sizes
from .mixed import peft_model
from .models import LORA, engine_of

__all__ = ["cases"]

TASKS, LONGEST = 8, 128


def cases(sizes: Sizes) -> list[Case]:
    """An engine of float32 and one of int8, each beside peft's batches of the same rows."""
    import hfadapt

    from .models import bert

    texts, names = real_texts(sizes.texts), [f"t{number % TASKS}" for number in range(sizes.texts)]
    tokenizer = word_tokenizer(texts)
    found = []
    for dtype in ("float32", "int8_dynamic"):
        base = bert(sizes, LONGEST)
        hfadapt.attach(base, LORA, names=[f"t{number}" for number in range(TASKS)], verify=False)
        engine = engine_of(base, [f"t{number}" for number in range(TASKS)], dtype, tokenizer)
        found.append(
            Case(
                f"real text, {TASKS} tasks mixed, LoRA r=8",
                lambda engine=engine: engine.predict(texts, names) and None,
                [Rival("peft, batches as they come", _peft(sizes, tokenizer, texts, names), 4.0)],
                f"{len(texts)} texts of {_lengths(tokenizer, texts)} tokens",
                dtype,
                unit=len(texts),
                per="texts",
            )
        )
    return found


def real_texts(count: int) -> list[str]:
    """Texts of the bundled data sets in turn, each in its own order."""
    from ...data import bundled

    each: list[Any] = [iter(bundled.load(name)["test"]) for name in bundled.BUNDLED]
    return [str(next(each[number % len(each)])["text"]) for number in range(count)]


def word_tokenizer(texts: list[str]) -> Any:
    """A fast tokenizer of the texts' words and signs: as many tokens as words, whatever is installed."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    cut = pre_tokenizers.BertPreTokenizer()
    words = dict.fromkeys(word for text in texts for word, _ in cut.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *[*words][:996]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = cut
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=LONGEST,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _lengths(tokenizer: Any, texts: list[str]) -> str:
    lengths = sorted(len(ids) for ids in tokenizer(texts, truncation=True)["input_ids"])
    return f"{lengths[0]} to {lengths[-1]} (median {lengths[len(lengths) // 2]})"


def _peft(sizes: Sizes, tokenizer: Any, texts: list[str], names: list[str]) -> Callable[[], None] | str:
    try:
        model = peft_model(sizes, TASKS)
    except ImportError as error:
        return f"not measured: {error}"

    def run() -> None:
        import torch

        with torch.inference_mode():
            for start in range(0, len(texts), sizes.rows):
                part = slice(start, start + sizes.rows)
                rows = tokenizer(texts[part], padding=True, truncation=True, return_tensors="pt")
                model(**rows, adapter_names=names[part])

    return run
