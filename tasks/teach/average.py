"""Several teachers as one, without asking any of them again."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def averaged(
    parts: Sequence[tuple[float, npt.NDArray[np.floating]]],
) -> npt.NDArray[np.floating]:
    """Vectors whose cosines are the weighted means of the cosines of all parts.

    They are the unit vectors end to end, each times the root of its share of the weights: the inner
    product of two such vectors is then the sum of weight times cosine, exactly, whatever the sizes
    and spaces of the parts; and their norm is one. No mean of the vectors themselves does that, and
    of teachers that were not trained together it would mean nothing.

    Args:
        parts: Weight and vectors (texts, size) of each; the sizes may differ.

    Returns:
        Shape (texts, sum of the sizes), in float32 or the larger type of a part.
    """
    total = sum(weight for weight, _ in parts)
    scaled = []
    for weight, vectors in parts:
        exact = vectors.astype(np.result_type(vectors, np.float32))
        norms = np.linalg.norm(exact, axis=1, keepdims=True)
        scaled.append(exact / norms * exact.dtype.type(np.sqrt(weight / total)))
    return np.concatenate(scaled, axis=1)
