"""The first layer of CLIP's image encoder."""

import os

import torch
from mmdet3d.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine.checkpoint import read_checkpoint
from ...errors import ConfigError, DataError

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# Names of the layer in the files of OpenAI and open_clip, of transformers, and in bare state dicts.
_NAMES = (
    'visual.conv1.weight',
    'model.visual.conv1.weight',
    'module.visual.conv1.weight',
    'vision_model.embeddings.patch_embedding.weight',
    'conv1.weight',
    'backbone2d.conv1.weight',
    'bi_encoder.backbone2d.conv1.weight',
)


def read_conv1(path: str) -> Tensor:
    """CLIP's patch embedding (width, 3, patch, patch) float32 from a user's file.

    Reads state dicts of OpenAI's, open_clip's and transformers' models (.pt, .pth, .bin, .safetensors), and OpenAI's
    TorchScript archives.

    Raises:
        DataError: the file cannot be read or has no such layer.
    """
    if not os.path.isfile(path):
        raise DataError(f'{path}: no such file (CLIP weights)')
    if str(path).endswith('.safetensors'):
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise DataError(f'{path}: reading it needs the package safetensors') from error
        state = load_file(path)
    else:
        state = _pickled(path)
    for name in _NAMES:
        if isinstance(state.get(name), Tensor):
            weight = state[name].detach().float()
            if weight.dim() != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3]:
                raise DataError(f'{path}: {name} has shape {tuple(weight.shape)}, expected (width, 3, patch, patch)')
            return weight
    found = ', '.join(list(state)[:3])
    raise DataError(f'{path}: no image patch embedding of CLIP in it ({_NAMES[0]} or {_NAMES[3]}); it has: {found}')


def _pickled(path: str) -> dict:
    try:
        archive = torch.jit.load(path, map_location='cpu')
    except RuntimeError:
        archive = None  # no TorchScript archive: an ordinary checkpoint
    if archive is not None:
        return dict(archive.state_dict())
    state = read_checkpoint(path)
    for entry in ('state_dict', 'model'):
        if isinstance(state.get(entry), dict):
            state = state[entry]
    return state


@MODELS.register_module()
class ClipConv1(BaseModule):
    """CLIP ViT's patch embedding as an image branch, frozen.

    Source: A. Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.

    Args:
        pretrained: file with CLIP's weights; None: random ones, and a warning says so.
        freeze_blocks: 0: all frozen, the only choice.
        patch, width: of the layer.
        normalize: subtract CLIP's mean colour and divide by its deviation.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        freeze_blocks: int = 0,
        patch: int = 16,
        width: int = 768,
        normalize: bool = True,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if freeze_blocks != 0:
            raise ConfigError(f'ClipConv1.freeze_blocks is {freeze_blocks}, only 0 (all frozen) is supported')
        self.normalize = normalize
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        if pretrained:
            weight = read_conv1(pretrained)
            if weight.shape != self.conv1.weight.shape:
                raise ConfigError(
                    f'{pretrained}: conv1 is {tuple(weight.shape)}, the model has {tuple(self.conv1.weight.shape)}'
                )
            self.conv1.weight.data.copy_(weight)
        else:
            print_log('ClipConv1: no pretrained file, its weights are random', logger='current', level=30)
        self.conv1.requires_grad_(False)
        self.register_buffer('mean', torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, width / 4, H / 8, W / 8) and mean (B, width).

        Args:
            images: (B, 3, H, W) RGB, 0..255, H and W multiples of the patch size (others are resized to the nearest).
        """
        patch = self.conv1.kernel_size[0]
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            size = [max(patch, round(side / patch) * patch) for side in images.shape[2:]]
            if list(images.shape[2:]) != size:
                images = F.interpolate(images, size, mode='bilinear', align_corners=False)
            if self.normalize:
                images = (images / 255 - self.mean) / self.std
            features = F.conv2d(images, self.conv1.weight.float(), stride=patch)
            return F.pixel_shuffle(features, 2), features.mean((2, 3))
