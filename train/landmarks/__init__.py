"""Landmarks → tokens: the stages that the bundled model is trained in, `regressor` and `masked`; see `train.hmr`."""

from .config import DataConfig, HmrConfig
from .masked import MaskedTask, fit_together
from .regressor import RegressorTask, whitening
from .view_task import ViewTask

__all__ = [
    "DataConfig",
    "HmrConfig",
    "MaskedTask",
    "RegressorTask",
    "ViewTask",
    "fit_together",
    "whitening",
]
