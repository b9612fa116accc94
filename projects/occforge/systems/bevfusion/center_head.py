"""mmdet3d's CenterHead without compiled ops."""

import torch
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.registry import MODELS

from ...models.rotated_boxes import bev_nms


@MODELS.register_module()
class BEVCenterHead(CenterHead):
    """mmdet3d's ``CenterHead`` whose suppression of turned boxes (``nms_type='rotate'``) is ours.

    Used in ``BEVFusion``, its layers see planes (B, C, X, Y), as the published weights do; the detector turns the
    outputs to the order (y, x) that losses and decoding expect.

    Loaded from a checkpoint of other classes, each task takes its classes' rows from the file's task of the same
    number, by name; rows of classes that the file has in another task stay new.

    Source: T. Yin et al., "Center-based 3D Object Detection and Tracking", CVPR 2021.
    """

    @property
    def class_axes(self) -> dict:
        """Axis of the class rows, for loading from other class lists; the tasks share out the classes in order."""
        last = len(self.task_heads[0].heatmap) - 1
        return {f'task_heads.*.heatmap.{last}': dict(axis=0, shared=True)}

    def get_task_detections(self, num_class_with_bg, batch_cls_preds, batch_reg_preds, batch_cls_labels, img_metas):
        """Suppression of one task's boxes; arguments and result as mmdet3d's."""
        limits = torch.as_tensor(
            self.test_cfg['post_center_limit_range'], dtype=batch_reg_preds[0].dtype, device=batch_reg_preds[0].device
        )
        results = []
        for boxes, scores, labels in zip(batch_reg_preds, batch_cls_preds, batch_cls_labels):
            scores = scores.reshape(-1)
            labels = torch.zeros_like(labels) if num_class_with_bg == 1 else labels
            keep = scores >= self.test_cfg['score_threshold']
            boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
            kept = bev_nms(
                boxes[:, [0, 1, 3, 4, 6]],
                scores,
                self.test_cfg['nms_thr'],
                self.test_cfg['pre_max_size'],
                self.test_cfg['post_max_size'],
            )
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept].long()
            if len(limits):
                inside = (boxes[:, :3] >= limits[:3]).all(1) & (boxes[:, :3] <= limits[3:]).all(1)
                boxes, scores, labels = boxes[inside], scores[inside], labels[inside]
            results.append(dict(bboxes=boxes, scores=scores, labels=labels))
        return results
