"""Fully sharded training (FSDP2): a process holds its share of weights, gradients and moments.

A block's weights are gathered when it runs and dropped again, so a decoder is trained on devices
none of which could hold its optimiser. Gradients are added up, as everywhere in a team: the
result is that of one process. Pooling and projection are small and stay whole.

Every forward and backward pass is a collective. All processes must run equally many, and one that
is out of memory cannot tell the others.

Source: Zhao et al. 2023, arXiv:2304.11277.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from model.encoder.blocks import named_blocks
from model.encoder.encoder import Encoder
from model.training.devices.team import Team


def sharded_copy(encoder: Encoder, team: Team) -> Encoder:
    """An encoder of the same weights, the decoder's spread over the processes.

    A copy, because torch cannot undo the sharding of modules.
    """
    copy = deepcopy(encoder)
    mesh = init_device_mesh(encoder.device.type, (team.size,))
    for module in [*named_blocks(copy.backbone)[1], copy.backbone]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in copy.backbone.modules():
        if isinstance(module, FSDPModule):
            # a team's losses add up to the loss: their gradients are summed, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(enable=True)
    return copy


def whole_tensors(tensors: Mapping[str, Tensor], team: Team) -> dict[str, Tensor]:
    """The tensors put together again, at the leading process; nothing at the others."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if team.leads:
            whole[name] = gathered
    return whole


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float, team: Team) -> Tensor:
    """Scale all gradients down to a joint norm of `max_norm` if theirs is larger; return theirs."""
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    own = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    if not own:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    shared = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    square = team.add_up(torch.nn.utils.get_total_norm(own).square())
    norm = (square + torch.nn.utils.get_total_norm(shared).square()).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in [*own, *shared]:
        gradient.mul_(scale)
    return norm
