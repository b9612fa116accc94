"""Swin Transformer with the un-normalised stage-0 output that BEVStereo-style systems ask for."""

from mmdet.models.backbones.swin import SwinTransformer as _SwinTransformer
from mmdet3d.registry import MODELS
from torch.utils.checkpoint import checkpoint


@MODELS.register_module()
class SwinTransformer(_SwinTransformer):
    """mmdet's Swin Transformer plus the fields that the BEVDet family's configs set.

    Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021. Modules,
    parameter names and arithmetic are mmdet's.

    Args:
        return_stereo_feat: put the output of stage 0 (stride 4), without its LayerNorm, in front of the outputs. With
            ``output_missing_index_as_none`` it takes the place of the first ``None``.
        pretrain_style: ``'official'`` where ``pretrained`` is a checkpoint of the authors (its patch-merging weights
            are reordered on loading), ``'mmcls'`` where it already has the names used here.
        with_cp: recompute each block in the backward pass to save memory (mmdet has it in torch's deprecated form).
        output_missing_index_as_none: return ``None`` for the stages missing in ``out_indices`` instead of leaving
            them out.
        **kwargs: of ``mmdet.SwinTransformer``.

    Returns of ``forward``: list of (B, C_i, H_i, W_i) float tensors.
    """

    def __init__(
        self,
        *args,
        return_stereo_feat: bool = False,
        pretrain_style: str = 'official',
        output_missing_index_as_none: bool = False,
        with_cp: bool = False,
        pretrained=None,
        init_cfg=None,
        **kwargs,
    ):
        if pretrain_style not in ('official', 'mmcls'):
            raise ValueError(f"SwinTransformer: pretrain_style is '{pretrain_style}', expected 'official' or 'mmcls'")
        if pretrained is not None:
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        kwargs.setdefault('convert_weights', pretrain_style == 'official')
        super().__init__(*args, init_cfg=init_cfg, **kwargs)
        self.with_cp = with_cp
        self.return_stereo_feat = return_stereo_feat
        self.output_missing_index_as_none = output_missing_index_as_none

    def train(self, mode: bool = True):
        super().train(mode)
        return self  # mmdet's returns None, which breaks model.eval().forward chains

    def forward(self, x):
        x, hw_shape = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + self.absolute_pos_embed
        x = self.drop_after_pos(x)

        outs = []
        for i, stage in enumerate(self.stages):
            out, (height, width) = x, hw_shape
            for block in stage.blocks:
                if self.with_cp and self.training and out.requires_grad:
                    out = checkpoint(block, out, hw_shape, use_reentrant=False)
                else:
                    out = block(out, hw_shape)
            if stage.downsample is not None:
                x, hw_shape = stage.downsample(out, hw_shape)
            if i == 0 and self.return_stereo_feat:
                outs.append(self._to_map(out, height, width))
            if i in self.out_indices:
                outs.append(self._to_map(getattr(self, f'norm{i}')(out), height, width))
            elif self.output_missing_index_as_none and not (i == 0 and self.return_stereo_feat):
                outs.append(None)
        return outs

    def stereo_feature(self, x):
        """Stage 0's output without its norm (B, C, H / 4, W / 4), all that an older frame is needed for; the later
        stages are not run."""
        x, (height, width) = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + self.absolute_pos_embed
        x = self.drop_after_pos(x)
        for block in self.stages[0].blocks:
            x = block(x, (height, width))
        return self._to_map(x, height, width)

    @staticmethod
    def _to_map(tokens, height: int, width: int):
        """(B, H*W, C) -> (B, C, H, W)."""
        return tokens.view(-1, height, width, tokens.shape[-1]).permute(0, 3, 1, 2).contiguous()
