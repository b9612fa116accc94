"""Shrunk copies of configs: the same parts, data and hooks in a world of 16 m, with tiny images and thin networks.

A shrunk config keeps what a config is about (model, losses, pipelines, samplers, hooks, schedule, metrics) and loses
what costs time: channels, depth, image size and range, and the checkpoints that it would start from.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from mmdet3d.registry import MODELS
from occforge.datasets.detection.gt_database import create_gt_database
from occforge.datasets.info_files import load_infos, save_infos
from occforge.engine import OccRunner

IMAGE_SIZE = (64, 192)  # (H, W) of the networks' images
GRID = (40, 40, 16)  # of the labels
SMALLER = {40.0: 8.0, 51.2: 12.8, 54.0: 10.8}  # metres from the vehicle to the end of the world
WIDTHS = {
    'aspp_mid_channels', 'base_channels', 'block_inplanes', 'blocks', 'channel_proj', 'context_channels', 'd_model',
    'embed_dims', 'encoder_channels', 'feat_channels',
    'feature_channels', 'feedforward_channels', 'hidden_channel', 'hidden_dim',
    'in_channels', 'init_dim', 'lidar_out_channel', 'mid_channels', 'n_input_channels', 'num_channels', 'num_feats',
    'num_pos_feats', 'numC_input', 'out_channels', 'out_dim', 'output_channels', 'planes', 'share_conv_channel',
    'single_bev_num_channels',
}  # fmt: skip
DEPTHS = {'depths', 'num_layer', 'layer_nums', 'layers'}
CELLS = {'sparse_shape', 'grid_size'}
FEWER = dict(max_rays=200, num_samples=2, times=1)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
POINTS = 1500  # of a frame of the rooms


# ------------------------------------------------------------------------------------------------------------ the data
def shrink_city(source, root) -> Path:
    """A copy of a synthetic city for shrunk configs: labels of the middle 16 x 16 m, an eighth of the points."""
    source, root = Path(source), Path(root)
    shutil.copytree(source, root)
    thin = {path: np.fromfile(path, np.float32).reshape(-1, 5)[::8] for path in root.glob('s*/LIDAR_TOP/*.bin')}
    for path, points in thin.items():
        points.tofile(path)
    for path in root.glob('lidarseg/*/*.bin'):
        np.fromfile(path, np.uint8)[::8].tofile(path)
    for path in root.glob('gts/*/*/labels.npz'):
        with np.load(path) as whole:
            labels = {name: whole[name][80:120, 80:120] for name in whole.files}
        np.savez(path, **labels)
        fine = {name: grid.repeat(4, 0).repeat(4, 1).repeat(4, 2) for name, grid in labels.items()}
        np.savez(path.with_name('labels_4x.npz'), **fine)
    for split in ('train', 'val'):
        metainfo, infos = load_infos(root / f'nuscenes_infos_{split}.pkl')
        save_infos(root / f'custom_infos_{split}.pkl', metainfo, infos)
    create_gt_database(root)
    return root


# ---------------------------------------------------------------------------------------------------------- the config
def shrink(cfg, root) -> None:
    """Shrink a config in place and let it read the data in ``root``.

    Args:
        cfg: of ``load_config``.
        root: of ``shrink_city``; for ESAM a folder with synthetic rooms in ``exports`` and what ``prepare`` made of
            them in ``scannet200-sv``, ``scannet200-mv`` and ``scannet200``.
    """
    root, rgbd = Path(root), 'criterion' in cfg.model
    cfg.load_from = None
    if rgbd:
        _walk_rgbd(cfg._cfg_dict, root)
    else:
        _walk(cfg._cfg_dict, published=_widest(cfg.model) >= 256)
    for name in LOADERS:
        if cfg.get(name):
            _shrink_loader(cfg[name], name == 'train_dataloader', root)
    for name in ('val_evaluator', 'test_evaluator'):
        metrics = cfg.get(name)
        for metric in metrics if isinstance(metrics, list) else [metrics] if metrics else []:
            if 'ann_file' in metric:
                metric.update(data_root=str(root), ann_file='nuscenes_infos_val.pkl')
            if metric.type in ('OccupancyMetric', 'RayIoU'):
                metric.point_cloud_range = [-8.0, -8.0, -1.0, 8.0, 8.0, 5.4]
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook.type != 'PartialLoadHook']
    cfg.train_cfg.update(
        dict(max_epochs=1, val_begin=1000) if cfg.train_cfg.get('by_epoch', True) else dict(max_iters=1)
    )
    for hook in cfg.custom_hooks:
        if hook.type == 'ImagePretrainHook' and hook.epochs:
            hook.epochs, cfg.train_cfg.max_epochs = 1, 2  # an epoch of the image branch, one of all


def run(cfg, work_dir) -> dict:
    """Train and test by the config's own runner; returns the metrics."""
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(work_dir), Path(cfg.filename).stem, 'WARNING'
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False, save_best=None)
    runner = OccRunner.from_cfg(cfg)
    before = {name: value.detach().clone() for name, value in runner.model.named_parameters() if value.requires_grad}
    runner.train()
    assert runner.iter >= 1
    assert all(torch.isfinite(value).all() for value in runner.model.state_dict().values() if value.is_floating_point())
    changed = [
        name for name, value in runner.model.named_parameters() if not torch.equal(before.get(name, value), value)
    ]
    assert changed, 'no parameter has changed'
    return runner.test() if cfg.get('test_dataloader') else {}


@MODELS.register_module(force=True)
class TinyImageFeatures(torch.nn.Module):
    """In place of the frozen detector of ESAM-E+FF: images (B, 3, H, W) -> (B, 960, h, w)."""

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, (12, 16)).repeat(1, 320, 1, 1) / 255


def _widest(node) -> int:
    """The largest number of channels in a model."""
    if isinstance(node, dict):
        own = [np.max(value) for key, value in node.items() if key in ('in_channels', 'embed_dims') and value]
        return max([*own, *(_widest(value) for value in node.values())], default=0)
    return max((_widest(value) for value in node), default=0) if isinstance(node, (list, tuple)) else 0


def _scaled(value, by):
    """Numbers, in whatever nesting, divided; a few (x, y, z, intensity, ...) are no channels and stay."""
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(each, by) for each in value)
    return value // by if isinstance(value, int) and value >= 8 else value


def _nearer(value):
    if isinstance(value, (list, tuple)):
        return type(value)(_nearer(each) for each in value)
    if isinstance(value, float) and abs(value) in SMALLER:
        return float(np.copysign(SMALLER[abs(value)], value))
    return value


def _below(value):
    """The dicts that a field holds, itself or in a list."""
    return [value] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()


def _walk(node, published: bool) -> None:
    """Shrink what the name of a field alone tells, in all dicts of a config."""
    if isinstance(node, (list, tuple)):
        for each in node:
            _walk(each, published)
        return
    if not isinstance(node, dict):
        return
    for key, value in list(node.items()):
        if key in ('input_size', 'image_size', 'final_dim'):
            node[key] = type(value)(IMAGE_SIZE)
        elif key == 'feature_size':
            node[key] = [side // 8 for side in IMAGE_SIZE]
        elif key == 'src_size' or (key == 'init_cfg' and 'Pretrained' in str(value)):
            del node[key]
        elif key in CELLS:
            node[key] = [side // 5 if side == 1440 else side // 4 if side >= 512 else side for side in value]
        elif key in ('bev_h', 'bev_w', 'row_num_embed', 'col_num_embed'):
            node[key] = value // 5
        elif key in DEPTHS and isinstance(value, (list, tuple)):
            node[key] = [1] * len(value)
        elif key in WIDTHS and published:
            node[key] = _scaled(value, 8)
        elif key in FEWER:
            node[key] = min(value, FEWER[key]) if value else value
        elif isinstance(value, (list, tuple)):
            node[key] = _nearer(value)
        if key in node:
            _walk(node[key], published)
    kind = str(node.get('type', ''))
    if kind in ('LoadOccGTFromFile', 'LoadFineOccGT'):
        node['grid_size'] = GRID
    elif kind == 'HistoryHook':
        node['start_epoch'] = 0
    elif published and kind.endswith('.ResNet') and 'base_channels' not in node:
        node['base_channels'] = 64 // 8
    elif published and kind == 'ConvNeXt':
        own = node['arch']['channels'] if isinstance(node['arch'], dict) else [128, 256, 512, 1024]
        node['arch'] = dict(depths=[1, 1, 1, 1], channels=_scaled(own, 8))
    elif published and kind in ('BEVSelfAttention', 'DA_MSDeformableAttention'):
        node['num_heads'] = 2


RGBD = dict(
    Res16UNet34C=dict(planes=[4, 4, 8, 8, 8, 6, 6, 8], init_dim=4, layers=[1] * 8, out_channels=8),
    TinySA=dict(in_channels=8),
    GeoAwarePooling=dict(channel_proj=8),
    ScanNetMixQueryDecoder=dict(in_channels=8, d_model=16, num_heads=2, hidden_dim=24),
    MultilevelMemory=dict(in_channels=[4, 4, 8, 8]),
    MergeHead=dict(in_channels=16, out_channels=16),
    ClipConv1=dict(width=16),
    ConvModule=dict(in_channels=4, out_channels=8),
    BiFusionEncoder=dict(out_channels=8, voxel_size=0.05),
    LoadAdjacentDataFromFile=dict(num_sample=POINTS),
)


def _walk_rgbd(node, root: Path) -> None:
    """Shrink the parts of ESAM by their types."""
    if isinstance(node, (list, tuple)):
        for each in node:
            _walk_rgbd(each, root)
        return
    if not isinstance(node, dict):
        return
    kind = str(node.get('type', ''))
    node.update(RGBD.get(kind, {}))
    if 'criterion' in node:
        node['voxel_size'] = 0.05
        if 'FF' in kind:
            node['img_backbone'] = dict(type='TinyImageFeatures')
    if 'rec_root' in node:
        node['rec_root'] = str(root / 'scannet200')
    if node.get('num_frames', 0) > 0:
        node['num_frames'] = 2
    if kind == 'LoadClipFeature':
        node['data_root'] = ''
    for value in node.values():
        _walk_rgbd(value, root)


def _shrink_loader(loader, training: bool, root: Path) -> None:
    loader.update(
        num_workers=0, persistent_workers=False, batch_size=min(loader.get('batch_size', 1), 2 if training else 1)
    )
    if 'labelled' in (loader.get('batch_sampler') or {}):
        loader['batch_sampler']['labelled'] = 1  # of the two samples
    shorten_pass(loader, 2)
    split = 'train' if training else 'val'
    for dataset in leaves(loader.dataset):
        if 'ScanNet' in dataset['type']:
            stage = 'mv' if 'MV' in dataset['type'] else 'sv'
            dataset['data_root'] = f'{root}/scannet200-{stage}/'
            dataset['ann_file'] = f'scannet200_{stage}_oneformer3d_infos_{split}.pkl'
            for step in dataset['pipeline']:
                if step['type'] == 'LoadClipFeature':
                    step['data_root'] = dataset['data_root']
        else:
            if dataset.get('sequences_split_num'):  # a place in the batch for each scene, and there is one
                loader['batch_size'] = 1
            kind = 'custom' if dataset['ann_file'].startswith('custom') else 'nuscenes'
            dataset.update(data_root=str(root), ann_file=f'{kind}_infos_{split}.pkl')
            for step in dataset['pipeline']:
                if 'db_sampler' in step:
                    step['db_sampler'].update(data_root=str(root), info_path=f'{root}/nuscenes_dbinfos_train.pkl')
            if dataset.get('label_fraction', 1.0) < 1:
                dataset['label_fraction'] = 0.34  # one of three frames


def shorten_pass(loader, batches: int) -> None:
    """Class-balanced sampling makes a long pass of few samples: at most so many batches, or each sample once."""
    if (loader.get('batch_sampler') or {}).get('epoch_factor', 1) > 1:
        loader['batch_sampler']['epoch_factor'] = 1
    if loader['dataset']['type'] == 'OccCBGSDataset':
        loader['num_batch_per_epoch'] = batches


def leaves(dataset):
    """The configs of the data sets inside of wrappers."""
    inner = dataset.get('dataset', dataset.get('datasets'))
    if inner is None:
        yield dataset
    for one in _below(inner):
        yield from leaves(one)
