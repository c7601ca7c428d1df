"""How far the student's choice among candidates is from the teacher's.

Shape letters: R = rows, K = candidates of a row.
"""

import torch
from torch import Tensor


def divergence(student_RK: Tensor, teacher_RK: Tensor, counts_RK: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's softmax from the teacher's, summed over rows.

    Args:
        student_RK: Logits: cosines over the student's temperature.
        teacher_RK: Logits likewise, over a temperature of the teacher's own: its raw scores would
            say that all candidates are about equal. Finite where a candidate counts.
        counts_RK: True where a candidate counts; at least once in each row.

    Returns:
        Scalar in nats; divide by B for the mean. A row with one candidate adds 0. It is not
        multiplied by the temperature squared, so that it stands beside the cross-entropy of the
        same logits.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    student_RK = torch.log_softmax(student_RK.masked_fill(~counts_RK, -torch.inf), dim=1)
    teacher_RK = torch.log_softmax(teacher_RK.masked_fill(~counts_RK, -torch.inf), dim=1)
    difference_RK = (teacher_RK - student_RK).masked_fill(~counts_RK, 0.0)
    return (teacher_RK.exp() * difference_RK).sum()
