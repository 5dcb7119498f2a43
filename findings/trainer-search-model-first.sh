#!/bin/sh
# transformers 5.24.0: Trainer.hyperparameter_search makes a trial's model before it asks for the trial's values.
#
# model_init(trial) then reads an empty trial.params, so that what it takes from there (a rank, a hidden size, a dropout)
# is the default in every trial; and of a searched seed, the weights of a trial are drawn with that of the trial before.
# 4.57.6 asked for the values first; a comment in both releases says that the values may change the seed and so have to
# come first. Exit status 0: it is still so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT

cat > "$venv/search.py" <<'PY'
import logging
import sys
import tempfile

import optuna
import torch
import transformers

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.disable(logging.WARNING)
values_first = sys.argv[1] == "values first"
sizes, asked, seeds = [], [], []


def space(trial):
    values = {
        "seed": trial.suggest_categorical("seed", [1, 2]),
        "learning_rate": trial.suggest_categorical("learning_rate", [1e-3]),
        "hidden": trial.suggest_categorical("hidden", [8]),
    }
    asked.append(values["seed"])
    return values


class Model(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, hidden), torch.nn.Linear(hidden, 1)

    def forward(self, x, labels):
        return {"loss": (self.second(self.first(x).tanh())[:, 0] - labels).square().mean()}


def model_init(trial=None):
    hidden = 16
    if trial is not None:
        hidden = trial.params.get("hidden", hidden)
        sizes.append(hidden)
        seeds.append(torch.initial_seed())
    return Model(hidden)


rows = [{"x": torch.randn(4), "labels": torch.tensor(0.5)} for _ in range(8)]
with tempfile.TemporaryDirectory() as folder:
    arguments = transformers.TrainingArguments(
        folder, max_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(args=arguments, model_init=model_init, train_dataset=rows, eval_dataset=rows)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.hyperparameter_search(
        space,
        lambda metrics: metrics["eval_loss"],
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"seed": [1, 2], "learning_rate": [1e-3], "hidden": [8]}, seed=0),
    )
print(f"transformers {transformers.__version__}, optuna {optuna.__version__}: two trials with hidden 8 and seeds {asked}")
print(f"  model_init saw hidden {sizes} and ran under the seeds {seeds}")
assert sizes == ([8, 8] if values_first else [16, 16]), sizes
assert seeds == (asked if values_first else [42, asked[0]]), seeds
PY

python3 -m venv "$venv/four"
"$venv/four/bin/pip" install --quiet torch==2.13.0
"$venv/four/bin/pip" install --quiet transformers==4.57.6 accelerate==1.15.0 optuna==5.0.0
"$venv/four/bin/python" -W ignore "$venv/search.py" "values first"
python3 -m venv "$venv/five"
"$venv/five/bin/pip" install --quiet torch==2.13.0
"$venv/five/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0 optuna==5.0.0
"$venv/five/bin/python" -W ignore "$venv/search.py" "model first"
