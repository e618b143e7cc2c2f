"""Which weights the pairs are made of, and how each is trained from what."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.delta.networks import AE, CNN, VIT, Network
from benchmarks.delta.schedules import Schedule


@dataclass(frozen=True)
class Recipe:
    """Weights in the making.

    Attributes:
        network: Which.
        classes: It tells apart; 0 for the auto-encoder.
        schedule: How it is trained.
        data: On what: ``factory``, ``lab``, ``field``, ``both`` (factory, field) or ``more`` (field, two classes more).
        after: Weights it goes on from; empty for weights drawn at random.
        seed: Of weights drawn at random.
        share: Of the way from ``after`` to what training found, as a relative size of the update; none for all of it.
    """

    network: Network
    classes: int
    schedule: Schedule
    data: str = "field"
    after: str = ""
    seed: int = 1
    share: float | None = None


_CNN = Recipe(CNN, 10, Schedule(1e-3, 150, is_decaying=True), "factory")
_VIT = Recipe(VIT, 10, Schedule(3e-4, 300, is_decaying=True), "lab")
_AE = Recipe(AE, 0, Schedule(1e-3, 1_500, is_decaying=True), "factory")


def _tuned(base: Recipe, after: str, schedule: Schedule, **other: object) -> Recipe:
    return replace(base, schedule=schedule, data="field", after=after, **other)  # type: ignore[arg-type]


RECIPES = {
    "cnn": _CNN,
    "cnn_adam_1e-5": _tuned(_CNN, "cnn", Schedule(1e-5, 16, seed=5)),
    "cnn_adam_1e-4": _tuned(_CNN, "cnn", Schedule(1e-4, 25, seed=6)),
    "cnn_sgd_1e-3": _tuned(_CNN, "cnn", Schedule(1e-3, 16, "sgd", seed=7)),
    "cnn_head": _tuned(_CNN, "cnn", Schedule(1e-3, 40, seed=8, only="head")),
    "cnn_more": replace(_tuned(_CNN, "cnn", Schedule(1e-4, 25, seed=9)), data="more", classes=12),
    "cnn_retrain": replace(_CNN, data="both", schedule=replace(_CNN.schedule, seed=10)),
    "cnn_scratch": replace(_CNN, seed=2, schedule=replace(_CNN.schedule, seed=11)),
    "cnn_touched_0.003": _tuned(_CNN, "cnn", Schedule(3e-5, 40, seed=12), share=0.003),
    "cnn_touched_0.01": _tuned(_CNN, "cnn", Schedule(3e-5, 40, seed=12), share=0.01),
    "cnn_touched_0.05": _tuned(_CNN, "cnn", Schedule(1e-4, 60, seed=12), share=0.05),
    "vit": _VIT,
    "vit_adam_2e-5": _tuned(_VIT, "vit", Schedule(2e-5, 20, seed=13)),
    "vit_lora": _tuned(_VIT, "vit", Schedule(1e-3, 20, seed=14, rank=8)),
    "ae": _AE,
    "ae_adam_3e-5": _tuned(_AE, "ae", Schedule(3e-5, 60, seed=15)),
    "ae_sgd_1e-2": _tuned(_AE, "ae", Schedule(1e-2, 40, "sgd", seed=16)),
}


@dataclass(frozen=True)
class Pair:
    """Two releases of one model.

    Attributes:
        name: Of the pair and of its folder.
        kind: Letter of the study: a fine-tune, b retrain, c head, d INT8, e metadata, f other seed, g LoRA, h half
            precision, j other shape, k opaque; t counts in no figure: updates scaled to a size, normalisation kept
            apart from the weights.
        form: How weights become a file.
        base: Weights before.
        new: Weights after.
    """

    name: str
    kind: str
    form: str
    base: str
    new: str

    @property
    def suffix(self) -> str:
        """Of its two files."""
        return SUFFIXES[self.form]


SUFFIXES = {
    "onnx": ".onnx", "f16": ".onnx", "i8pc": ".onnx", "i8pt": ".onnx", "i8dyn": ".onnx", "meta": ".onnx",
    "tflite": ".tflite", "tflite8": ".tflite", "bf16": ".safetensors",
    "bf16raw": ".safetensors", "forest": ".pkl",
}  # fmt: skip

PAIRS = (
    Pair("cnn_ft_adam_1e-5", "a", "onnx", "cnn", "cnn_adam_1e-5"),
    Pair("cnn_ft_sgd_1e-3", "a", "onnx", "cnn", "cnn_sgd_1e-3"),
    Pair("vit_ft_adam_2e-5", "a", "onnx", "vit", "vit_adam_2e-5"),
    Pair("vit_lora_merged", "g", "onnx", "vit", "vit_lora"),
    Pair("cnn_f16_ft_1e-5", "h", "f16", "cnn", "cnn_adam_1e-5"),
    Pair("cnn_i8pc_ft_1e-4", "d", "i8pc", "cnn", "cnn_adam_1e-4"),
    Pair("cnn_i8pt_ft_1e-4", "d", "i8pt", "cnn", "cnn_adam_1e-4"),
    Pair("vit_i8dyn_ft_2e-5", "d", "i8dyn", "vit", "vit_adam_2e-5"),
    Pair("cnn_bf16_ft_1e-4", "h", "bf16", "cnn", "cnn_adam_1e-4"),
    Pair("vit_f16_ft_2e-5", "h", "f16", "vit", "vit_adam_2e-5"),
    Pair("ae_daily_adam_3e-5", "a", "onnx", "ae", "ae_adam_3e-5"),
    Pair("ae_daily_sgd_1e-2", "a", "onnx", "ae", "ae_sgd_1e-2"),
    Pair("cnn_ft_adam_1e-4", "a", "onnx", "cnn", "cnn_adam_1e-4"),
    Pair("cnn_tfl_ft_1e-4", "a", "tflite", "cnn", "cnn_adam_1e-4"),
    Pair("cnn_tfl_i8_1e-4", "d", "tflite8", "cnn", "cnn_adam_1e-4"),
    Pair("cnn_i8pc_ft_1e-5", "d", "i8pc", "cnn", "cnn_adam_1e-5"),
    Pair("cnn_f16_ft_1e-4", "h", "f16", "cnn", "cnn_adam_1e-4"),
    Pair("cnn_meta_only", "e", "meta", "cnn", "cnn"),
    Pair("cnn_head_only", "c", "onnx", "cnn", "cnn_head"),
    Pair("cnn_addclass_1e-4", "j", "onnx", "cnn", "cnn_more"),
    Pair("rf_pickle_retrain", "k", "forest", "", ""),
    Pair("cnn_retrain_sameinit", "b", "onnx", "cnn", "cnn_retrain"),
    Pair("cnn_scratch", "f", "onnx", "cnn", "cnn_scratch"),
    Pair("cnn_bf16_unfolded_1e-4", "t", "bf16raw", "cnn", "cnn_adam_1e-4"),
    Pair("cnn_touched_0.003", "t", "onnx", "cnn", "cnn_touched_0.003"),
    Pair("cnn_touched_0.01", "t", "onnx", "cnn", "cnn_touched_0.01"),
    Pair("cnn_touched_0.05", "t", "onnx", "cnn", "cnn_touched_0.05"),
)  # fmt: skip
