"""Prints by how many MiB the memory of a fresh process grows over 500 training steps of the renderer.

    python ray_memory.py render      each step with another number of rays
    python ray_memory.py cache       ids of rays and steps kept for each shape, as a NeRF head had them

In a process of its own, because one that has run for long holds freed memory that a leak would be served from.
"""

import functools
import sys

import torch
from occforge.engine.memory import resident_memory
from occforge.ops import render_rays


class Render:
    def __init__(self, generator):
        self.generator = generator
        self.density = torch.randn(1, 16, 16, 16, generator=generator).requires_grad_()
        self.semantics = torch.randn(1, 16, 16, 16, 4, generator=generator).requires_grad_()

    def __call__(self, rays):
        origins = 8 * torch.rand(rays, 3, generator=self.generator)
        directions = torch.randn(rays, 3, generator=self.generator)
        result = render_rays(self.density, self.semantics, origins, directions, (0, 0, 0), (0.5, 0.5, 0.5), step=0.5)
        (result.depth.sum() + result.semantics.sum()).backward()
        self.density.grad = self.semantics.grad = None


@functools.lru_cache(maxsize=128)
def ids(rays, steps):
    return torch.arange(rays).repeat_interleave(steps), torch.arange(steps).repeat(rays)


def main(kind, steps=500, warm_up=20):
    generator = torch.Generator().manual_seed(0)
    step = Render(generator) if kind == 'render' else lambda rays: ids(rays, 64)
    counts = (torch.randperm(2000, generator=generator)[: steps + warm_up] + 200).tolist()
    for count in counts[:warm_up]:
        step(count)
    before = resident_memory()
    for count in counts[warm_up:]:
        step(count)
    print(resident_memory() - before)


if __name__ == '__main__':
    main(sys.argv[1])
