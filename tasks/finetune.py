"""Stage finetune: stage 2, labelled pairs with mined hard negatives."""

from tasks.contract.stage import run_stage
from tasks.outside import recorded
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.training.contrastive import ContrastiveStage, run_training


def main() -> None:
    """Run the stage."""
    run_stage("finetune", recorded("finetune", body))


def body(params: Params) -> None:
    """Train the model of stage 1 on finetune.sources."""
    stage = ContrastiveStage(
        name="finetune",
        training=params.finetune.training,
        weights=dict(params.finetune.sources),
        base=ARTIFACTS / "pretrain" / "model",
        output=ARTIFACTS / "finetune",
        is_mined=True,
    )
    run_training(params, stage)


if __name__ == "__main__":
    main()
