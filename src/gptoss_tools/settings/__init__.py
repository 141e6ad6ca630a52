"""Every setting, declared once: the field is the flag, the variable, the TOML key and the keyword.

Groups are mixins, so a name means one thing in every command. These are plain pydantic models: they
read nothing; `load.load` adds flags, variables and TOML. Names are TRL's where TRL has one. What is
not here reaches GRPOConfig through the TOML table `[trainer]` (the `trainer` field).
"""

from __future__ import annotations

from gptoss_tools.settings.commands import (
    AnswerSettings,
    CalcRewardSettings,
    CheckDataSettings,
    ConvertHarmonySettings,
    DemoSettings,
    DoctorSettings,
    EvaluateSettings,
    ExportSettings,
    GenerateSettings,
    MakeDatasetSettings,
    ReportSettings,
    RunsSettings,
    TestAdapterSettings,
    VerifyExportSettings,
)
from gptoss_tools.settings.groups import (
    ActionSettings,
    AtLeastZero,
    DecodingSettings,
    DryRunSettings,
    Effort,
    EpisodeSettings,
    ModelSettings,
    OverwriteSettings,
    PlantSettings,
    Positive,
    PromptSettings,
    Seed,
    Settings,
    Share,
    TableSettings,
)
from gptoss_tools.settings.remote import RemoteSettings
from gptoss_tools.settings.training import (
    GrpoLossSettings,
    HeldOutSettings,
    LoggingSettings,
    LoraSettings,
    LossType,
    OptimizerSettings,
    ResumeSettings,
    RolloutSettings,
    TrainSettings,
)

__all__ = [
    "ActionSettings",
    "AnswerSettings",
    "AtLeastZero",
    "CalcRewardSettings",
    "CheckDataSettings",
    "ConvertHarmonySettings",
    "DecodingSettings",
    "DemoSettings",
    "DoctorSettings",
    "DryRunSettings",
    "Effort",
    "EpisodeSettings",
    "EvaluateSettings",
    "ExportSettings",
    "GenerateSettings",
    "GrpoLossSettings",
    "HeldOutSettings",
    "LoggingSettings",
    "LoraSettings",
    "LossType",
    "MakeDatasetSettings",
    "ModelSettings",
    "OptimizerSettings",
    "OverwriteSettings",
    "PlantSettings",
    "Positive",
    "PromptSettings",
    "RemoteSettings",
    "ReportSettings",
    "ResumeSettings",
    "RolloutSettings",
    "RunsSettings",
    "Seed",
    "Settings",
    "Share",
    "TableSettings",
    "TestAdapterSettings",
    "TrainSettings",
    "VerifyExportSettings",
]
