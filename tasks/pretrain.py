"""Stage pretrain: stage 1, contrastive on many pairs with in-batch negatives."""

from tasks.contract.stage import run_stage
from tasks.outside import recorded
from tasks.params.load import Params
from tasks.params.paths import ARTIFACTS
from tasks.training.contrastive import ContrastiveStage, run_training


def main() -> None:
    """Run the stage."""
    run_stage("pretrain", recorded("pretrain", body))


def body(params: Params) -> None:
    """Train the pruned backbone on the pairs of pretrain.sources."""
    stage = ContrastiveStage(
        name="pretrain",
        training=params.pretrain.training,
        weights=dict(params.pretrain.sources),
        base=ARTIFACTS / "prune" / "model",
        output=ARTIFACTS / "pretrain",
        is_mined=False,
    )
    run_training(params, stage)


if __name__ == "__main__":
    main()
