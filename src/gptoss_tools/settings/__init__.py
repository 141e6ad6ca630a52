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
    HubDataSettings,
    ModelSettings,
    OverwriteSettings,
    PlantSettings,
    Positive,
    PromptSettings,
    Seed,
    Settings,
    Share,
    TableSettings,
    hint_of,
    spelled,
)
from gptoss_tools.settings.pipeline import PipelineSettings
from gptoss_tools.settings.prepare import PrepareDataSettings, PrepareRowSettings
from gptoss_tools.settings.pretrain import (
    NewModelSettings,
    PretrainSettings,
    SampleSettings,
)
from gptoss_tools.settings.remote import RemoteSettings
from gptoss_tools.settings.rewards import (
    JudgeSettings,
    RewardSettings,
    RewardsSettings,
    TagSettings,
)
from gptoss_tools.settings.sft import SftSettings
from gptoss_tools.settings.training import (
    AdapterSettings,
    CompletionLogSettings,
    GrpoLossSettings,
    HeldOutSettings,
    LoggingSettings,
    LoraSettings,
    LossType,
    OptimizerSettings,
    ResumeSettings,
    RolloutSettings,
    RunSettings,
    TrainSettings,
)

__all__ = [
    "ActionSettings",
    "AdapterSettings",
    "AnswerSettings",
    "AtLeastZero",
    "CalcRewardSettings",
    "CheckDataSettings",
    "CompletionLogSettings",
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
    "HubDataSettings",
    "JudgeSettings",
    "LoggingSettings",
    "LoraSettings",
    "LossType",
    "MakeDatasetSettings",
    "ModelSettings",
    "NewModelSettings",
    "OptimizerSettings",
    "OverwriteSettings",
    "PipelineSettings",
    "PlantSettings",
    "Positive",
    "PrepareDataSettings",
    "PrepareRowSettings",
    "PretrainSettings",
    "PromptSettings",
    "RemoteSettings",
    "ReportSettings",
    "ResumeSettings",
    "RewardSettings",
    "RewardsSettings",
    "RolloutSettings",
    "RunSettings",
    "RunsSettings",
    "SampleSettings",
    "Seed",
    "Settings",
    "SftSettings",
    "Share",
    "TableSettings",
    "TagSettings",
    "TestAdapterSettings",
    "TrainSettings",
    "VerifyExportSettings",
    "hint_of",
    "spelled",
]
