"""AdamW whose kernels move by orthogonalised momentum."""

import torch
from mmengine.registry import OPTIMIZERS

# Jordan et al.'s polynomial 3.4445 x - 4.7750 x^3 + 2.0315 x^5: five times brings singular values of 0.01 to 1 near 1
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAMW_RMS = 0.2  # of a step of AdamW at a learning rate of 1, as Liu et al. measured it


def orthogonalize(matrix):
    """(..., M, N) with its singular values brought near 1 (0.7 to 1.2) by a Newton-Schulz iteration, float32.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. Each step multiplies with a
    polynomial of the present x x^T. These commute, so they are gathered as (M, M) matrices and meet the (M, N) one
    once, which for the wide matrices of convolutions is a third of the work.
    """
    matrix = matrix.float()
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    linear, cubic, quintic = _POLYNOMIAL
    gram, product = x @ x.mT, None
    for _ in range(_ITERATIONS):
        factor = cubic * gram + quintic * gram @ gram
        factor.diagonal(dim1=-2, dim2=-1).add_(linear)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor  # of the next x
    x = product @ x
    return x.mT if tall else x


@OPTIMIZERS.register_module()
class MuonAdamW(torch.optim.AdamW):
    """AdamW for vectors (biases, norms), Muon for kernels: every parameter of two dimensions or more.

    A kernel (out, ...) counts as a matrix (out, rest). Its momentum is orthogonalised, so that all directions of the
    weights learn at the same pace and not those alone that the frequent classes pull at: 250 steps taught the image
    branch of the small FusionOcc as much as some 700 of AdamW's. The step is scaled to the root mean square of AdamW's,
    so that one ``lr`` and one ``weight_decay`` serve both.

    Sources: Jordan et al., "Muon", 2024; the scale from Liu et al., "Muon is Scalable for LLM Training", 2025.
    ``torch.optim.Muon`` takes matrices alone, no convolution kernels, and would leave the others to a second optimizer,
    which mmengine's ``OptimWrapper`` does not hold.

    Args:
        params, lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``.
        momentum: of the kernels, Nesterov's form.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, momentum=0.95):
        if not 0 <= momentum < 1:
            raise ValueError(f'MuonAdamW.momentum is {momentum}, expected a number in [0, 1)')
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        for group in self.param_groups:
            group.setdefault('momentum', momentum)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kernels = []
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.ndim >= 2 and parameter.grad is not None:
                    self._step_kernel(parameter, group)
                    kernels.append((parameter, parameter.grad))
                    parameter.grad = None  # AdamW's step is for the others
        super().step()
        for parameter, gradient in kernels:
            parameter.grad = gradient
        return loss

    def _step_kernel(self, parameter, group):
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state['step'] = torch.tensor(0.0)  # AdamW looks for it in every state it loads
            state['momentum_buffer'] = torch.zeros_like(gradient)
        state['step'] += 1
        momentum = state['momentum_buffer'].mul_(group['momentum']).add_(gradient)
        direction = orthogonalize((gradient + group['momentum'] * momentum).flatten(1))
        scale = _ADAMW_RMS * max(direction.shape) ** 0.5
        parameter.mul_(1 - group['lr'] * group['weight_decay'])
        parameter.add_(direction.view_as(parameter).to(parameter.dtype), alpha=-group['lr'] * scale)
