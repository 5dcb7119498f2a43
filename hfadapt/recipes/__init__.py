"""Runs of recipes: what ``hfadapt train`` does."""

from hfadapt.run.results import ArmResult, RunResult
from hfadapt.run.source import model_path

__all__ = ["ArmResult", "RunResult", "model_path"]
