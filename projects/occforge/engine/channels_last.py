"""Convolution weights in the memory format that the device's library prefers."""

from torch import channels_last, channels_last_3d, nn

_FORMATS = {
    nn.Conv2d: channels_last,
    nn.ConvTranspose2d: channels_last,
    nn.Conv3d: channels_last_3d,
    nn.ConvTranspose3d: channels_last_3d,
}


def use_channels_last(model: nn.Module) -> int:
    """Lay the weights of torch's 2D and 3D convolutions out with channels last, in place; returns how many.

    A convolution with such a weight takes and gives maps and volumes with channels last, and what stands between
    convolutions keeps that: oneDNN on a CPU, and cuDNN in half precision, then need not reorder them. Names, shapes
    and values stay; results differ by rounding. Sparse convolutions are not touched.
    """
    count = 0
    for module in model.modules():
        memory_format = next((form for kind, form in _FORMATS.items() if isinstance(module, kind)), None)
        if memory_format is not None:
            module.weight.data = module.weight.data.contiguous(memory_format=memory_format)
            count += 1
    return count
