"""TransFusion's detection head: the best places of a heatmap become queries of a transformer decoder.

Source: X. Bai et al., "TransFusion: Robust LiDAR-Camera Fusion for 3D Object Detection with Transformers", CVPR 2022;
Z. Liu et al., "BEVFusion", ICRA 2023.
"""

import copy
from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models.layers.transformer import DetrTransformerDecoderLayer
from mmdet.models.losses import FocalLoss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmdet3d.models.dense_heads.centerpoint_head import SeparateHead
from mmdet3d.models.layers import circle_nms
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine import reduce_mean_count
from ...errors import ConfigError
from ...models.rotated_boxes import bev_nms
from .targets import draw_heatmap

# Classes so small that neighbouring cells hold different objects: no cell suppresses its neighbours, and predictions of
# one class within ``radius`` of a better one go where suppression is asked for. By name, whatever the class list.
_SMALL_CLASSES = {
    'nuScenes': dict(names=('pedestrian', 'traffic_cone'), places=(8, 9), num_classes=10, radius=0.175),
    'Waymo': dict(names=('pedestrian', 'cyclist'), places=(1, 2), num_classes=3, radius=0.7),
}


class PositionEncodingLearned(nn.Module):
    """Places (B, P, input_channel) to embeddings (B, num_pos_feats, P); batch statistics are over all places."""

    def __init__(self, input_channel: int, num_pos_feats: int = 288):
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(input_channel, num_pos_feats, 1),
            nn.BatchNorm1d(num_pos_feats),
            nn.ReLU(inplace=True),
            nn.Conv1d(num_pos_feats, num_pos_feats, 1),
        )

    def forward(self, xyz: Tensor) -> Tensor:
        return self.position_embedding_head(xyz.mT.contiguous())


@MODELS.register_module()
class TransformerDecoderLayer(DetrTransformerDecoderLayer):
    """Attention among the queries, to the plane, and a feed-forward network, each followed by a norm.

    The places' embeddings are added to queries, keys and values, not to what is passed on.

    Args:
        pos_encoding_cfg: of ``PositionEncodingLearned``.
        others: of mmdet's ``DetrTransformerDecoderLayer``.
    """

    def __init__(self, pos_encoding_cfg: dict, **kwargs):
        super().__init__(**copy.deepcopy(kwargs))  # mmdet's writes into them
        self.self_posembed = PositionEncodingLearned(**pos_encoding_cfg)
        self.cross_posembed = PositionEncodingLearned(**pos_encoding_cfg)

    def forward(self, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """
        Args:
            query: (B, C, P).
            key: (B, C, K).
            query_pos, key_pos: (B, P, 2), (B, K, 2) places in cells.

        Returns:
            (B, C, P).
        """
        place, key_place = self.self_posembed(query_pos).mT, self.cross_posembed(key_pos).mT
        query, key = query.mT, key.mT + key_place
        placed = query + place
        query = self.norms[0](self.self_attn(placed, placed, placed, identity=query))
        query = self.norms[1](self.cross_attn(query + place, key, key, identity=query))
        return self.norms[2](self.ffn(query)).mT


class _FocalLoss(FocalLoss):
    """mmdet's focal loss in plain torch on every device: its compiled form needs the full mmcv on a GPU."""

    def forward(self, pred, target, weight=None, avg_factor=None):
        if not self.use_sigmoid:
            raise ConfigError('loss_cls.use_sigmoid=False is not supported')
        classes = pred.shape[1]
        hot = F.one_hot(target, classes + 1)[:, :classes].to(pred.dtype)
        loss = py_sigmoid_focal_loss(pred, hot, weight, self.gamma, self.alpha, self.reduction, avg_factor)
        return self.loss_weight * loss


def _build_cls_loss(cfg: dict) -> nn.Module:
    cfg = dict(cfg)
    if cfg['type'] in ('mmdet.FocalLoss', 'FocalLoss'):
        return _FocalLoss(**{key: value for key, value in cfg.items() if key != 'type'})
    return MODELS.build(cfg)


@MODELS.register_module()
class TransFusionHead(BaseModule):
    """Detection on the plane (B, in_channels, X, Y).

    Args:
        num_proposals: queries.
        auxiliary: every decoder layer is supervised, not only the last.
        in_channels, hidden_channel: of the plane, and inside.
        num_classes: of the objects; None: as many as ``class_names``.
        num_decoder_layers, decoder_layer: the decoder.
        num_heads: accepted for the published configs (``decoder_layer`` says it).
        nms_kernel_size: cells (odd) of which a peak of the heatmap is the largest.
        bn_momentum: of all batch norms of the head.
        common_heads: {output: (channels, convolutions)}: center, height, dim, rot and perhaps vel.
        num_heatmap_convs: convolutions of the class logits.
        class_names: of the objects; needed where they are not the ten of nuScenes or the three of Waymo, because small
            classes are treated by name.
        train_cfg: ``dataset`` ('nuScenes' or 'Waymo'), ``point_cloud_range``, ``grid_size``, ``voxel_size``,
            ``out_size_factor``, ``gaussian_overlap``, ``min_radius``, ``pos_weight``, ``code_weights``, ``assigner``.
        test_cfg: ``dataset``, ``grid_size``, ``out_size_factor``, ``nms_type``: None, 'circle' or 'rotate', with
            ``pre_maxsize``, ``post_maxsize``; ``small_radius``: of the suppression (None: the data set's).
        bbox_coder: ``TransFusionBBoxCoder``.
        loss_cls, loss_bbox, loss_heatmap: losses.
        init_bias: of the class logits.
    """

    #: axis of the class rows in a tensor of this module, for loading from other class lists
    class_axes = {'heatmap_head.1': 0, 'class_encoding.weight': 1, 'prediction_heads.*.heatmap.1': 0}

    def __init__(
        self,
        num_proposals: int = 128,
        auxiliary: bool = True,
        in_channels: int = 128 * 3,
        hidden_channel: int = 128,
        num_classes: int | None = None,
        num_decoder_layers: int = 3,
        decoder_layer: dict | None = None,
        num_heads: int = 8,
        nms_kernel_size: int = 1,
        bn_momentum: float = 0.1,
        common_heads: dict | None = None,
        num_heatmap_convs: int = 2,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        bias: str | bool = 'auto',
        class_names: Sequence[str] | None = None,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        loss_heatmap: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        bbox_coder: dict | None = None,
        init_bias: float = -2.19,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if num_classes is None and class_names is not None:
            num_classes = len(class_names)
        if num_classes is None:
            raise ConfigError('TransFusionHead needs num_classes or class_names')
        if class_names is not None and len(class_names) != num_classes:
            raise ConfigError(
                f'TransFusionHead: num_classes is {num_classes}, class_names has {len(class_names)}: '
                f'{", ".join(class_names)}'
            )
        if nms_kernel_size % 2 != 1:
            raise ConfigError(f'TransFusionHead.nms_kernel_size is {nms_kernel_size}, an odd number is expected')
        if decoder_layer is None or bbox_coder is None or test_cfg is None:
            raise ConfigError('TransFusionHead needs decoder_layer, bbox_coder and test_cfg')
        self.num_proposals, self.auxiliary, self.num_classes = num_proposals, auxiliary, num_classes
        self.num_decoder_layers, self.nms_kernel_size = num_decoder_layers, nms_kernel_size
        self.class_names = None if class_names is None else tuple(class_names)
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        conv1d, conv2d = dict(type='Conv1d'), conv_cfg or dict(type='Conv2d')

        self.shared_conv = build_conv_layer(conv2d, in_channels, hidden_channel, kernel_size=3, padding=1, bias=True)
        self.heatmap_head = nn.Sequential(
            ConvModule(
                hidden_channel,
                hidden_channel,
                3,
                padding=1,
                bias=bias,
                conv_cfg=conv2d,
                norm_cfg=norm_cfg or dict(type='BN2d'),
            ),
            build_conv_layer(conv2d, hidden_channel, num_classes, kernel_size=3, padding=1, bias=True),
        )
        self.class_encoding = nn.Conv1d(num_classes, hidden_channel, 1)
        self.decoder = nn.ModuleList(
            MODELS.build({'type': 'TransformerDecoderLayer', **decoder_layer}) for _ in range(num_decoder_layers)
        )
        heads = {name: tuple(value) for name, value in (common_heads or {}).items()}
        missing = {'center', 'height', 'dim', 'rot'} - set(heads)
        if missing:
            raise ConfigError(f'TransFusionHead.common_heads lacks {", ".join(sorted(missing))}')
        if (self.bbox_coder.code_size == 10) != ('vel' in heads):
            raise ConfigError(
                f'TransFusionHead: bbox_coder.code_size is {self.bbox_coder.code_size} and common_heads has '
                f'{", ".join(heads)}: 10 with vel, 8 without'
            )
        self.prediction_heads = nn.ModuleList(
            SeparateHead(
                hidden_channel,
                {**heads, 'heatmap': (num_classes, num_heatmap_convs)},
                conv_cfg=conv1d,
                norm_cfg=dict(type='BN1d'),
                bias=bias,
            )
            for _ in range(num_decoder_layers)
        )
        self.code_names = [name for name in ('center', 'height', 'dim', 'rot', 'vel') if name in heads]
        self._initialise(init_bias)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = bn_momentum

        self.small_classes = self._small_classes()
        factor = test_cfg['out_size_factor']
        #: (X, Y) cells of the plane
        self.plane_size = tuple(size // factor for size in test_cfg['grid_size'][:2])
        x, y = (torch.arange(n, dtype=torch.float32) + 0.5 for n in self.plane_size)
        places = torch.stack(torch.meshgrid(x, y, indexing='ij'), dim=-1).view(1, -1, 2)
        self.register_buffer('bev_pos', places, persistent=False)  # (1, X*Y, 2), not in published checkpoints

        self.loss_cls = _build_cls_loss(loss_cls or dict(type='mmdet.FocalLoss', use_sigmoid=True))
        self.loss_bbox = MODELS.build(loss_bbox or dict(type='mmdet.L1Loss', loss_weight=0.25))
        self.loss_heatmap = MODELS.build(loss_heatmap or dict(type='mmdet.GaussianFocalLoss'))
        self.assigner = None
        if train_cfg is not None:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            if len(train_cfg['code_weights']) != self.bbox_coder.code_size:
                raise ConfigError(
                    f'TransFusionHead: train_cfg.code_weights has {len(train_cfg["code_weights"])} entries, '
                    f'bbox_coder.code_size is {self.bbox_coder.code_size}'
                )

    def _initialise(self, init_bias: float) -> None:
        for parameter in self.decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.heatmap_head[1].bias, init_bias)
        for head in self.prediction_heads:
            nn.init.constant_(head.heatmap[-1].bias, init_bias)

    def init_weights(self) -> None:
        """Nothing: the constructor has done it (mmdet3d's SeparateHead would initialise anew)."""
        self._is_init = True

    def _small_classes(self) -> tuple[int, ...]:
        known = _SMALL_CLASSES.get(self.test_cfg.get('dataset'))
        if known is None:
            return ()
        if self.class_names is not None:
            return tuple(i for i, name in enumerate(self.class_names) if name.lower() in known['names'])
        if self.num_classes != known['num_classes']:
            raise ConfigError(
                f'TransFusionHead: {self.num_classes} classes of the dataset {self.test_cfg["dataset"]!r}: give '
                'class_names, because small classes are treated by name'
            )
        return known['places']

    # ------------------------------------------------------------------ forward

    def forward(self, feats: Tensor | Sequence[Tensor], metas=None) -> dict[str, Tensor]:
        """Plane (B, in_channels, X, Y), or a list of it.

        Returns:
            center (B, 2, L P) in cells, height (B, 1, L P), dim (B, 3, L P), rot (B, 2, L P), vel (B, 2, L P), heatmap
            (B, classes, L P) logits, of P queries in each of L layers (one with ``auxiliary`` off); dense_heatmap
            (B, classes, X, Y) logits; query_heatmap_score (B, classes, P); query_labels (B, P).
        """
        feats = feats[0] if isinstance(feats, (list, tuple)) else feats
        if tuple(feats.shape[2:]) != self.plane_size:
            raise ValueError(
                f'TransFusionHead: the plane is {tuple(feats.shape[2:])}, grid_size and out_size_factor say '
                f'{self.plane_size}'
            )
        batch = len(feats)
        feats = self.shared_conv(feats)
        with torch.autocast(feats.device.type, enabled=False):
            dense_heatmap = self.heatmap_head(feats.float())
        score = self.suppress(dense_heatmap.detach().sigmoid()).flatten(2)  # (B, classes, X*Y)
        cells = score.shape[2]
        best = score.flatten(1).topk(self.num_proposals, dim=1).indices
        query_labels, place = best // cells, best % cells
        flat = feats.flatten(2)
        query = flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1))
        hot = F.one_hot(query_labels, self.num_classes).mT.to(query.dtype)
        query = query + self.class_encoding(hot)
        key_pos = self.bev_pos.expand(batch, -1, -1)
        query_pos = key_pos.gather(1, place[..., None].expand(-1, -1, 2))

        layers = []
        for decoder, head in zip(self.decoder, self.prediction_heads):
            query = decoder(query, flat, query_pos, key_pos)
            result = head(query)
            result['center'] = result['center'] + query_pos.mT
            layers.append(result)
            query_pos = result['center'].detach().mT
        layers = layers if self.auxiliary else layers[-1:]
        outputs = {name: torch.cat([layer[name] for layer in layers], dim=-1) for name in layers[0]}
        outputs['query_heatmap_score'] = score.gather(2, place[:, None].expand(-1, self.num_classes, -1))
        outputs['dense_heatmap'] = dense_heatmap
        outputs['query_labels'] = query_labels
        return outputs

    def suppress(self, score: Tensor) -> Tensor:
        """The heatmap (B, classes, X, Y) with 0 where a neighbour is larger. The border has no peaks."""
        margin = self.nms_kernel_size // 2
        largest = torch.zeros_like(score)
        inner = F.max_pool2d(score, self.nms_kernel_size, stride=1)
        largest[..., margin : score.shape[2] - margin, margin : score.shape[3] - margin] = inner
        if self.small_classes:
            small = list(self.small_classes)
            largest[:, small] = score[:, small]
        return score * (score == largest)

    # ------------------------------------------------------------------ prediction

    def predict(self, batch_feats, batch_input_metas) -> list[InstanceData]:
        """One ``InstanceData`` a sample: bboxes_3d, scores_3d, labels_3d."""
        return self.predict_by_feat(self(batch_feats, batch_input_metas), batch_input_metas)

    @torch.no_grad()
    def predict_by_feat(self, preds: dict[str, Tensor], metas: Sequence[dict]) -> list[InstanceData]:
        last = {name: preds[name][..., -self.num_proposals :].float() for name in [*self.code_names, 'heatmap']}
        hot = F.one_hot(preds['query_labels'], self.num_classes).mT
        score = last.pop('heatmap').sigmoid() * preds['query_heatmap_score'] * hot
        results = []
        for decoded, meta in zip(self.bbox_coder.decode(score, vel=last.pop('vel', None), **last, filter=True), metas):
            boxes, scores, labels = decoded['bboxes'], decoded['scores'], decoded['labels']
            keep = self._nms(boxes, scores, labels)
            boxes = meta['box_type_3d'](boxes[keep], box_dim=boxes.shape[-1])
            results.append(InstanceData(bboxes_3d=boxes, scores_3d=scores[keep], labels_3d=labels[keep].int()))
        return results

    def _nms(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """(N,) bool of the predictions that stay."""
        keep = torch.ones_like(labels, dtype=torch.bool)
        kind, dataset = self.test_cfg.get('nms_type'), self.test_cfg.get('dataset')
        if kind is None or dataset not in _SMALL_CLASSES:
            return keep
        if kind not in ('circle', 'rotate'):
            raise ConfigError(f"TransFusionHead.test_cfg.nms_type is {kind!r}, expected None, 'circle' or 'rotate'")
        radius = self.test_cfg.get('small_radius') or _SMALL_CLASSES[dataset]['radius']
        # Waymo's three classes are suppressed each by itself
        classes = range(self.num_classes) if dataset == 'Waymo' else self.small_classes
        limit = self.test_cfg.get('post_maxsize', 83)
        for label in classes:
            rows = (labels == label).nonzero().squeeze(1)
            if not len(rows):
                continue
            if kind == 'circle':
                # compares the square of the distance with the radius
                table = torch.cat([boxes[rows, :2], scores[rows, None]], dim=1)
                chosen = torch.as_tensor(circle_nms(table.cpu().numpy(), radius, limit), device=rows.device)
            else:
                rectangles = boxes[rows][:, [0, 1, 3, 4, 6]]
                chosen = bev_nms(rectangles, scores[rows], radius, self.test_cfg.get('pre_maxsize'), limit)
            keep[rows] = False
            keep[rows[chosen.long()]] = True
        return keep

    # ------------------------------------------------------------------ training

    def loss(self, batch_feats, batch_data_samples) -> dict[str, Tensor]:
        metas = [sample.metainfo for sample in batch_data_samples]
        truths = [sample.gt_instances_3d for sample in batch_data_samples]
        return self.loss_by_feat(self(batch_feats, metas), truths)

    @torch.no_grad()
    def get_targets(self, truths: Sequence[InstanceData], preds: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the predictions should be.

        Returns:
            labels, label_weights (B, L P), bbox_targets, bbox_weights (B, L P, code_size), ious (B, L P), num_pos (),
            matched_ious (), heatmap (B, classes, X, Y).
        """
        if self.assigner is None:
            raise ConfigError('TransFusionHead needs train_cfg to train')
        each = [
            self._targets_of({name: value[b : b + 1] for name, value in preds.items()}, truth)
            for b, truth in enumerate(truths)
        ]
        targets = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        targets['num_pos'] = targets['num_pos'].sum()
        targets['matched_ious'] = targets['matched_ious'].mean()
        return targets

    def _targets_of(self, pred: dict[str, Tensor], truth: InstanceData) -> dict[str, Tensor]:
        device = pred['center'].device
        gt_labels = truth.labels_3d.to(device)
        known = (gt_labels >= 0) & (gt_labels < self.num_classes)
        gt_boxes, gt_labels = truth.bboxes_3d.tensor.to(device)[known].float(), gt_labels[known]
        code = {name: pred[name].detach().float() for name in self.code_names}
        boxes = self.bbox_coder.boxes(vel=code.pop('vel', None), **code)[0]
        logits = pred['heatmap'].detach().float()
        number = self.num_proposals
        parts = []
        for start in range(0, len(boxes), number):
            part = slice(start, start + number)
            parts.append(self.assigner.assign(boxes[part], gt_boxes, gt_labels, logits[..., part], self.train_cfg))
        gt_inds = torch.cat([part.gt_inds for part in parts])
        ious = torch.cat([part.max_overlaps for part in parts]).clamp(0, 1)
        positive = gt_inds > 0
        labels = gt_inds.new_full((len(boxes),), self.num_classes)
        labels[positive] = gt_labels[gt_inds[positive] - 1].long()
        pos_weight = self.train_cfg.get('pos_weight', -1)
        label_weights = torch.ones_like(labels)
        if pos_weight > 0:
            label_weights = torch.where(positive, pos_weight, label_weights.float())
        targets = boxes.new_zeros(len(boxes), self.bbox_coder.code_size)
        targets[positive] = self.bbox_coder.encode(gt_boxes[gt_inds[positive] - 1])
        cfg = self.train_cfg
        cell = [size * cfg['out_size_factor'] for size in cfg['voxel_size'][:2]]
        heatmap = draw_heatmap(
            gt_boxes,
            gt_labels,
            self.num_classes,
            self.plane_size,
            cfg['point_cloud_range'][:2],
            cell,
            cfg['gaussian_overlap'],
            cfg['min_radius'],
        )
        return dict(
            labels=labels,
            label_weights=label_weights,
            bbox_targets=targets,
            bbox_weights=positive.to(targets.dtype)[:, None].expand_as(targets),
            ious=ious,
            num_pos=positive.sum(),
            matched_ious=ious[positive].sum() / positive.sum().clamp(min=1),
            heatmap=heatmap,
        )

    def loss_by_feat(self, preds: dict[str, Tensor], truths: Sequence[InstanceData]) -> dict[str, Tensor]:
        """loss_heatmap, layer_*_loss_cls, layer_*_loss_bbox (-1: the last), and matched_ious, which only informs."""
        targets = self.get_targets(truths, preds)
        heatmap = preds['dense_heatmap'].float().sigmoid().clamp(1e-4, 1 - 1e-4)
        peaks = reduce_mean_count(targets['heatmap'].eq(1).sum())
        losses = dict(loss_heatmap=self.loss_heatmap(heatmap, targets['heatmap'], avg_factor=peaks.item()))
        num_pos = reduce_mean_count(targets['num_pos']).item()
        number = self.num_proposals
        layers = preds['heatmap'].shape[-1] // number
        code_weights = preds['center'].new_tensor(self.train_cfg['code_weights'], dtype=torch.float32)
        code = torch.cat([preds[name].float() for name in self.code_names], dim=1).mT
        for layer in range(layers):
            part = slice(layer * number, (layer + 1) * number)
            prefix = 'layer_-1' if layer == layers - 1 else f'layer_{layer}'
            losses[f'{prefix}_loss_cls'] = self.loss_cls(
                preds['heatmap'][..., part].mT.flatten(0, 1).float(),
                targets['labels'][:, part].flatten(),
                targets['label_weights'][:, part].flatten().float(),
                avg_factor=num_pos,
            )
            weights = targets['bbox_weights'][:, part] * code_weights
            losses[f'{prefix}_loss_bbox'] = self.loss_bbox(
                code[:, part], targets['bbox_targets'][:, part], weights, avg_factor=num_pos
            )
        losses['matched_ious'] = targets['matched_ious']
        return losses
