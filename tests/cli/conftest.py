"""A tiny encoder and a tiny run that the command-line tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hfadapt.cli import cli
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer

RECIPE = """\
model: {model}
tasks:
  - {{name: wn_relation, pair: separate, limit: {{train: 60, validation: 12, test: 12}}}}
  - {{name: sms_spam, metrics: [f1, accuracy], limit: {{train: 60, validation: 12, test: 12}}}}
  - {{name: tweet_valence, limit: {{train: 60, validation: 12, test: 12}}}}
method: {{method: low_rank, size: 4}}
mixing: {{batch_size: 4, epoch_steps: 3}}
training: {{num_train_epochs: 2, learning_rate: 1e-3}}
baselines: [frozen_head, full_finetuning]
output: {output}
fast: [mixing.epoch_steps=2]
"""


@pytest.fixture(scope="session")
def hfadapt() -> Callable[..., Result]:
    """Run the command line in this process; hfadapt's errors are raised, another exit status than expected fails."""

    def run(*arguments: object, status: int = 0, **options: object) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    tiny_model("bert").save_pretrained(folder / "encoder")
    tiny_tokenizer().save_pretrained(folder / "encoder")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=folder / "encoder", output=folder / "run"))
    return path


@pytest.fixture(scope="session")
def finished(recipe: Path, hfadapt: Callable[..., Result]) -> Path:
    """The output folder of a finished run."""
    hfadapt("train", recipe, "--fast", "--overwrite")
    return recipe.parent / "run"
