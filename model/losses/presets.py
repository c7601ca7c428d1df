"""Published contrastive losses by name."""

from dataclasses import dataclass

from model.losses.contrastive import ContrastiveSettings
from model.losses.false_negatives import FalseNegativeSettings


@dataclass(frozen=True)
class Preset:
    """A loss and the mask by score that belongs to it."""

    loss: ContrastiveSettings
    student_margin: FalseNegativeSettings | None = None


OWN_AND_BATCH = ("own_negatives", "other_positives", "other_negatives")

PRESETS: dict[str, Preset] = {
    # arXiv:2510.22369; the cached cross-batch documents are a setting of their own
    "giga": Preset(ContrastiveSettings((OWN_AND_BATCH,), temperature=0.02)),
    # arXiv:2503.07891, eq. 2: one hard negative, positives of other rows, no same-tower terms; the
    # paper gives no temperature
    "gemini": Preset(ContrastiveSettings((("own_negatives", "other_positives"),), 0.05)),
    # arXiv:2506.05176, eq. 1-2, with the margin mask; the paper gives no temperature
    "qwen3": Preset(
        ContrastiveSettings(
            (("own_negatives", "queries", "documents", "other_positives"),), temperature=0.05
        ),
        FalseNegativeSettings(margin=0.1, explicit=True),
    ),
    # arXiv:2405.17428: in-batch and hard negatives, then hard negatives alone
    "nv-embed-1": Preset(ContrastiveSettings((OWN_AND_BATCH,), temperature=0.02)),
    "nv-embed-2": Preset(ContrastiveSettings((("own_negatives",),), temperature=0.02)),
    # arXiv:2403.20327: own hard negative, other positives, other queries; ours the temperature
    "gecko": Preset(
        ContrastiveSettings((("own_negatives", "other_positives", "queries"),), temperature=0.05)
    ),
    # F2LLM: two softmaxes, one over own hard negatives, one over the batch; ours the temperature
    "f2llm": Preset(
        ContrastiveSettings((("own_negatives",), ("other_positives",)), temperature=0.05)
    ),
}
