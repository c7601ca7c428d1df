"""Stage evaluate: one rung of the ladder, `python -m tasks.evaluate <rung>`."""

import logging
import os
import sys
import tempfile

from tasks.contract.stage import run_stage
from tasks.params.load import Params


def main() -> None:
    """Evaluate the rung named on the command line."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.exit("usage: python -m tasks.evaluate <rung of evaluate.checkpoints>")
    rung = sys.argv[1]

    def body(params: Params) -> None:
        # `datasets` reads its environment when it is imported, hence the late import. It caches a
        # local folder by name, not by content: a cache of one's own is never stale.
        from tasks.evaluate.evaluation import evaluate_rung

        evaluate_rung(params, rung)

    with tempfile.TemporaryDirectory(prefix="samovar-datasets-") as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        os.environ["HF_HUB_OFFLINE"] = "1"
        logging.getLogger("mteb").setLevel(logging.WARNING)
        run_stage(f"evaluate@{rung}", body)


if __name__ == "__main__":
    main()
