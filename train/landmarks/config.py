"""What a stage of training from landmarks can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from train.config import Config
from train.loop import LoopConfig


class DataConfig(Config):
    """Bodies and views."""

    bank: Path = Field(description="bodies to train on, written by train.data.bank")
    validation: Path = Field(description="bodies to validate on")
    batch: int = Field(512, gt=0, description="views of one shard of a step")
    detections: tuple[Path, ...] = Field((), description="what a detector said of people: files of train.data.detector")


class HmrConfig(Config):
    """One stage of training from landmarks."""

    stage: Literal["regressor", "masked"]
    loop: LoopConfig
    data: DataConfig
    model: dict[str, Any] = Field(description="regressor: width, depth, dropout; masked: settings of Mega")
    tokenizer: Path | None = Field(None, description="model folder that holds the tokenizer, where the bank has tokens")
    start: Path | None = Field(None, description="run or model folder whose weights this stage begins with")
    start_masked: Path | None = Field(
        None, description="masked: run whose model, but for the regressor, it begins with"
    )
    unconditional: float = Field(0.15, ge=0, lt=1, description="share of the bodies shown without conditioning")
    unconditional_weight: float = Field(0.5, ge=0, description="masked: of the tokens of those bodies")
    nothing_known: float = Field(0.4, ge=0, le=1, description="share of the bodies of which no token is known")
    all_known: float = Field(0.1, ge=0, le=1, description="share of the bodies of which all tokens are known")
    token_rows: int = Field(3, gt=0, description="regressor: every n-th body counts in the cross-entropy")
    frozen_prior: bool = Field(True, description="masked: the regressor stays as stage 1 left it")
    latent_weight: float = Field(1.0, ge=0)
    joints_weight: float = Field(6.0, ge=0, description="of a metre, joints in the body's own axes")
    placed_weight: float = Field(0.0, ge=0, description="of a metre, joints from the pelvis in the camera's axes")
    tokens_weight: float = Field(0.1, ge=0)
    rotation_weight: float = Field(1.0, ge=0)
    camera_weight: float = Field(1.0, ge=0)
    spread_weight: float = Field(0.02, ge=0)
