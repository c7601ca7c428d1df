"""Stage multitask: stage 3, all tasks with their instructions; one model per variant."""

import sys
from functools import partial

from tasks.contract.stage import StageError, run_stage
from tasks.outside import recorded
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.training.contrastive import ContrastiveStage, run_training


def main() -> None:
    """Run the stage for the variant named on the command line."""
    variant = sys.argv[1] if sys.argv[1:] else ""
    run_stage(f"multitask@{variant}", recorded("multitask", partial(body, variant)))


def body(variant: str, params: Params) -> None:
    """Train the model of stage 2 on the sources and the seed of `variant`.

    Raises:
        StageError: params.yaml has no such variant.
    """
    if variant not in params.multitask.variants:
        known = ", ".join(params.multitask.variants)
        raise StageError(f"no variant {variant!r}: python -m tasks.multitask <one of {known}>")
    chosen = params.multitask.variants[variant]
    stage = ContrastiveStage(
        name=f"multitask@{variant}",
        training=params.multitask.training.model_copy(update={"seed": chosen.seed}),
        weights=dict(chosen.sources),
        base=ARTIFACTS / "finetune" / "model",
        output=ARTIFACTS / "multitask" / variant,
        is_mined=True,
    )
    run_training(params, stage)


if __name__ == "__main__":
    main()
