"""TextNAS: architecture search for text representation (arXiv 1912.10729)."""

from systems.textnas.data import HeldOut, Splits, TextData, load_splits, load_text
from systems.textnas.draw import draw
from systems.textnas.history import History, read_history
from systems.textnas.minibench import MiniBench
from systems.textnas.network import Supernet, TextNet
from systems.textnas.preset import PAPER
from systems.textnas.search import evaluate_best, search
from systems.textnas.space import OPS, OPS_PLUS, Arch, ArchError, BudgetError, DataError, Layer, Space, TextNASError
from systems.textnas.task import Task
from systems.textnas.train import Budget, Result, evaluate, evaluate_test, fit
from systems.textnas.vocabulary import Embedding, Vocabulary

__all__ = [
    "OPS",
    "OPS_PLUS",
    "PAPER",
    "Arch",
    "ArchError",
    "Budget",
    "BudgetError",
    "DataError",
    "Embedding",
    "HeldOut",
    "History",
    "Layer",
    "MiniBench",
    "Result",
    "Space",
    "Splits",
    "Supernet",
    "Task",
    "TextData",
    "TextNASError",
    "TextNet",
    "Vocabulary",
    "draw",
    "evaluate",
    "evaluate_best",
    "evaluate_test",
    "fit",
    "load_splits",
    "load_text",
    "read_history",
    "search",
]
