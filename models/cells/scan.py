"""Trained recurrences over whole sequences, forward and backward written out, for training in bfloat16.

Input: the input products U x + b of all steps, computed by one large product, and the state before them. Output: the
states after every step. Must not know: layers, tokens.

torch's own recurrent kernels multiply in float32 on a CPU, or slowly. Here the type of `products` decides: in
bfloat16 every product runs in it, while the LSTM's memory and its gradient stay in float32. Backward keeps the
loop over time short: factors that no later step changes are computed for all steps at once, and the gradient of the
weights is one product over time.

Shapes: T time, B batch, H hidden_size. Gates lie side by side in torch's order.
Source of the method: Appleyard et al., "Optimizing performance of recurrent neural networks on GPUs", 2016.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def scan(recurrence: type[Function], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of one of the recurrences below; gradients flow to its inputs."""
    outputs = recurrence.apply(*inputs)  # type: ignore[no-untyped-call]
    return outputs if isinstance(outputs, tuple) else (outputs,)


class RnnScan(Function):
    """h_t = tanh(products_t + W h_{t-1})."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, weight: Tensor, h: Tensor) -> Tensor:
        """products [T, B, H]; weight [H, H]; h [B, H], all of one type. Returns h_1 … h_T [T, B, H]."""
        states = products.new_empty(len(products) + 1, *h.shape)
        states[0] = h
        for step, product in enumerate(products):
            _tanh_(torch.addmm(product, states[step], weight.t(), out=states[step + 1]))
        ctx.save_for_backward(states, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, weight = ctx.saved_tensors
        slopes = 1 - states[1:] ** 2
        grads = torch.empty_like(slopes)
        grad_h = torch.zeros_like(states[0])
        for step in reversed(range(len(grads))):
            grad_h.add_(grad_states[step])
            torch.mul(grad_h, slopes[step], out=grads[step])
            torch.mm(grads[step], weight, out=grad_h)
        return grads, _weight_grad(grads, states), grad_h


class GruScan(Function):
    """h_t = n + z * (h_{t-1} - n) with p = products_t, w = W h_{t-1}:

    r = sigmoid(p_r + w_r), z = sigmoid(p_z + w_z), n = tanh(p_n + r * (w_n + c))
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        """products [T, B, 3H]; weight [3H, H]; bias [H], c; h [B, H], all of one type. Returns h_1 … h_T [T, B, H]."""
        length, size = len(products), h.shape[-1]
        states = products.new_empty(length + 1, *h.shape)
        gates = torch.empty_like(products[..., : 2 * size], memory_format=torch.contiguous_format)
        held, candidates = torch.empty_like(states[1:]), torch.empty_like(states[1:])
        product = torch.empty_like(products[0])
        states[0] = h
        for step in range(length):
            torch.mm(states[step], weight.t(), out=product)
            torch.add(products[step, :, : 2 * size], product[:, : 2 * size], out=gates[step]).sigmoid_()
            r, z = gates[step].chunk(2, dim=1)
            torch.add(product[:, 2 * size :], bias, out=held[step])
            n = _tanh_(torch.addcmul(products[step, :, 2 * size :], r, held[step], out=candidates[step]))
            torch.sub(states[step], n, out=states[step + 1]).mul_(z).add_(n)
        ctx.save_for_backward(states, gates, held, candidates, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        states, gates, held, candidates, weight = ctx.saved_tensors
        r, z = gates.chunk(2, dim=-1)
        slope_n = (1 - z) * (1 - candidates**2)
        slopes = torch.stack([slope_n * held * r * (1 - r), (states[:-1] - candidates) * z * (1 - z), slope_n * r], 2)
        grads = torch.empty_like(slopes)  # of w_r, w_z and w_n: [T, B, 3, H]
        grads_h = torch.empty_like(states[1:])
        grad_h, through = torch.zeros_like(states[0]), torch.empty_like(states[0])
        for step in reversed(range(len(grads))):
            torch.add(grad_h, grad_states[step], out=grads_h[step])
            torch.mul(grads_h[step].unsqueeze(1), slopes[step], out=grads[step])
            torch.mul(grads_h[step], z[step], out=through)
            torch.addmm(through, grads[step].flatten(1), weight, out=grad_h)
        grad_weight, grad_bias = _weight_grad(grads.flatten(2), states), grads[:, :, 2].sum((0, 1))
        torch.mul(grads_h, slope_n, out=grads[:, :, 2])
        return grads.flatten(2), grad_weight, grad_bias, grad_h


class LstmScan(Function):
    """c_t = f * c_{t-1} + i * g, h_t = o * tanh(c_t) with a = products_t + W h_{t-1}:

    i = sigmoid(a_i), f = sigmoid(a_f), g = tanh(a_g), o = sigmoid(a_o)
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """products [T, B, 4H], weight [4H, H], h [B, H] of one type; c [B, H], its type may be a wider one.

        Returns h_1 … h_T [T, B, H] and c_T [B, H].
        """
        length = len(products)
        states = products.new_empty(length + 1, *h.shape)
        memories = c.new_empty(length + 1, *c.shape)
        gates, squashed = torch.empty_like(products), torch.empty_like(states[1:])
        product, wide, tanh_c = torch.empty_like(products[0]), c.new_empty(products[0].shape), torch.empty_like(c)
        states[0], memories[0] = h, c
        for step in range(length):
            torch.addmm(products[step], states[step], weight.t(), out=product)
            i, f, g, o = wide.copy_(product).chunk(4, dim=1)
            g.mul_(2)
            wide.sigmoid_()
            g.mul_(2).sub_(1)  # tanh z = 2 sigmoid(2 z) - 1
            torch.mul(f, memories[step], out=memories[step + 1]).addcmul_(i, g)
            _tanh_(tanh_c.copy_(memories[step + 1]))
            gates[step], squashed[step] = wide, tanh_c
            torch.mul(o, tanh_c, out=states[step + 1])
        ctx.save_for_backward(states, memories, gates, squashed, weight)
        return states[1:], memories[length]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor, grad_memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        states, memories, gates, squashed, weight = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, dim=-1)
        before = memories[:-1].to(gates.dtype)
        slopes = torch.stack([g * i * (1 - i), before * f * (1 - f), i * (1 - g**2)], 2)  # of c_t by a_i, a_f, a_g
        slope_o, slope_c = squashed * o * (1 - o), o * (1 - squashed**2)
        grads = gates.new_empty(*gates.shape[:2], 4, states.shape[-1])
        grad_h, grad_c = torch.zeros_like(states[0]), grad_memory.clone()
        for step in reversed(range(len(grads))):
            grad_h.add_(grad_states[step])
            grad_c.addcmul_(grad_h, slope_c[step])
            torch.mul(grad_c.unsqueeze(1), slopes[step], out=grads[step, :, :3])
            torch.mul(grad_h, slope_o[step], out=grads[step, :, 3])
            grad_c.mul_(f[step])
            torch.mm(grads[step].flatten(1), weight, out=grad_h)
        return grads.flatten(2), _weight_grad(grads.flatten(2), states), grad_h, grad_c


def _tanh_(x: Tensor) -> Tensor:
    """Apply tanh in place, as 2 sigmoid(2 x) - 1: several times faster in torch on a CPU, with an error of at most
    1e-7.
    """
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


def _weight_grad(grads: Tensor, states: Tensor) -> Tensor:
    """Return the sum over time and batch of grads_t h_{t-1}^T: [T, B, G], [T + 1, B, H] → [G, H]."""
    return grads.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
