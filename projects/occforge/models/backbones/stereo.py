"""The feature that a stereo cost volume is made from, of any image backbone."""

from mmdet.models.backbones.resnet import ResNet

from ...errors import ConfigError


def stereo_feature(backbone, imgs):
    """Features (M, C, H / 4, W / 4) of images (M, 3, H, W), as the backbone's first output, without its later stages.

    For frames that only serve as the other eye: ``SwinTransformer`` and ``ConvNeXt`` with ``return_stereo_feat=True``,
    mmdet's ``ResNet`` with stage 0 among its ``out_indices``, and anything with a method ``stereo_feature``.

    Raises:
        ConfigError: the backbone does not give such a feature.
    """
    if hasattr(backbone, 'stereo_feature'):
        if not getattr(backbone, 'return_stereo_feat', True):
            raise ConfigError(f'{type(backbone).__name__}.return_stereo_feat must be True for stereo depth')
        return backbone.stereo_feature(imgs)
    if not isinstance(backbone, ResNet) or backbone.out_indices[0] != 0:
        raise ConfigError(
            f'{type(backbone).__name__} gives no stereo feature: expected a ResNet with stage 0 in out_indices, a '
            'SwinTransformer or a ConvNeXt'
        )
    if backbone.deep_stem:
        x = backbone.stem(imgs)
    else:
        x = backbone.relu(backbone.norm1(backbone.conv1(imgs)))
    return getattr(backbone, backbone.res_layers[0])(backbone.maxpool(x))
