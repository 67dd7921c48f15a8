"""How good is it, and is the difference real: test collections, runs, measures, significance."""

from __future__ import annotations

from reperio.evaluation.beir import Beir
from reperio.evaluation.experiment import evaluate
from reperio.evaluation.qrels import Qrels
from reperio.evaluation.report import Comparison, Report
from reperio.evaluation.run import Run

__all__ = ["Beir", "Comparison", "Qrels", "Report", "Run", "evaluate"]
