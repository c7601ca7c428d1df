"""Learning rate by step: linear warm-up, then half a cosine down to a floor."""

import math


def learning_rate_at(
    step: int, *, peak: float, min_share: float, warmup_steps: int, max_steps: int
) -> float:
    """Learning rate of optimiser step `step`, counted from 1.

    Step 1 of a warm-up of w has peak / w, step w has the peak, step max_steps has peak * min_share.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return peak * (min_share + (1.0 - min_share) * 0.5 * (1.0 + math.cos(math.pi * progress)))
