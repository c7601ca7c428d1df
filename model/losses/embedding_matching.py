"""Embedding matching: the student's vector of a text should be the teacher's.

Shape letters: M = texts, D = numbers compared.
"""

import torch.nn.functional as F
from torch import Tensor


def embedding_matching(student_MD: Tensor, teacher_MD: Tensor) -> Tensor:
    """Squared distance of the vectors, scaled to unit norm, summed over the texts.

    Args:
        student_MD: Embeddings, or prefixes of them.
        teacher_MD: Embeddings of the same texts, or prefixes of the same size.

    Returns:
        Scalar; twice the cosine distance of each text, or D times its mean squared error.

    Source: EmbeddingGemma, arXiv:2509.20354, after Kim et al. 2023, arXiv:2301.12005, eq. 6.
    """
    difference_MD = F.normalize(student_MD.float(), dim=-1) - F.normalize(teacher_MD, dim=-1)
    return difference_MD.square().sum()


def check_sizes(size: int, student_sizes: list[int], teacher_size: int) -> None:
    """Make sure that `size` leading numbers are an embedding of both models.

    Raises:
        ValueError: They are not.
    """
    if size not in student_sizes:
        raise ValueError(
            f"the teacher's vectors are to be matched at size {size}, but the student is trained "
            f"at {', '.join(map(str, student_sizes))}: add {size} to matryoshka_dims, or match at "
            "one of these"
        )
    if size > teacher_size:
        raise ValueError(
            f"the teacher's vectors are to be matched at size {size}, but have {teacher_size} "
            "numbers: match at a Matryoshka size of the student that both have, or match "
            "similarities, which need no equal sizes"
        )
