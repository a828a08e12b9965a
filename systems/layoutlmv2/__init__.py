"""LayoutLMv2: reading documents by text, layout and image (arXiv 2012.14740)."""

from systems.layoutlmv2.checkpoint import load, save
from systems.layoutlmv2.config import (
    BASE,
    LARGE,
    SMALL,
    TINY,
    CheckpointError,
    Config,
    DocumentError,
    InputError,
    LayoutError,
    MissingData,
)
from systems.layoutlmv2.model import (
    Batch,
    LayoutLMv2,
    Output,
    PageClassifier,
    Pretrainer,
    QuestionAnswerer,
    TokenTagger,
)

__all__ = [
    "BASE",
    "LARGE",
    "SMALL",
    "TINY",
    "Batch",
    "CheckpointError",
    "Config",
    "DocumentError",
    "InputError",
    "LayoutError",
    "LayoutLMv2",
    "MissingData",
    "Output",
    "PageClassifier",
    "Pretrainer",
    "QuestionAnswerer",
    "TokenTagger",
    "load",
    "save",
]
