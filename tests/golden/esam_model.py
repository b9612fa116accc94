"""The networks of ESAM against the reference implementation's outputs."""

import torch
from cases import assert_close, config, parameters, tensor
from mmdet3d.registry import MODELS
from occforge.models.minkowski import GRID_ORIGIN
from occforge.models.sparse import SparseTensor
from occforge.systems.esam import (
    GeoAwarePooling,
    MergeHead,
    MultilevelMemory,
    OnlineMerge,
    Res16UNet34C,
    ScanNetMergeCriterion_Fast,
    ScanNetMixQueryDecoder,
)
from occforge.systems.esam.criterion import InstanceTargets
from occforge.systems.esam.merging import Instances, box_corners
from occforge.systems.esam.postprocess import check_test_cfg, frame_instances, point_semantics
from occforge.systems.esam.query_decoder import Predictions


def load(module, npz, prefix='param.'):
    """The parameters of the file, all of them and nothing else, under the published names."""
    module.load_state_dict(parameters(npz, prefix), strict=True)
    return module


def sparse(coords, features, stride=1):
    """Rows (sample, x, y, z) in voxels, as they come -> a tensor of the grid at ``stride``."""
    coords = coords.long()
    coords = torch.cat([coords[:, :1], coords[:, 1:] // stride + GRID_ORIGIN // stride], 1).int()
    size = 2 * GRID_ORIGIN // stride
    return SparseTensor(features, coords, (size,) * 3, int(coords[:, 0].max()) + 1)


def order_of(coords):
    """Lexicographic order of the rows."""
    order = torch.arange(len(coords))
    for column in (3, 2, 1, 0):
        order = order[coords[order, column].argsort(stable=True)]
    return order


def check_backbone_unet34c_small(npz):
    cfg = config(npz, 'cfg_json')
    net = Res16UNet34C(
        cfg['in_channels'],
        cfg['planes'][-1],
        dict(conv1_kernel_size=cfg['conv1_kernel_size'], bn_momentum=cfg['bn_momentum']),
        cfg['planes'],
        cfg['init_dim'],
        cfg['layers'],
    )
    load(net, npz).eval()
    coords = tensor(npz, 'in_coords')
    x = sparse(coords, tensor(npz, 'in_feats'))
    order = order_of(coords)
    assert torch.equal(coords[order], tensor(npz, 'out_coords'))
    assert_close(net(x).features[order], npz['out_eval'], 'out_eval', atol=1e-4)
    net.train()
    assert_close(net(sparse(coords, tensor(npz, 'in_feats'))).features[order], npz['out_train'], 'out_train', atol=1e-3)
    state = net.state_dict()
    for name in npz.files:
        if name.startswith('after_train.'):
            assert_close(state[name.removeprefix('after_train.')], npz[name], name, atol=1e-4)


def _check_memory(npz):
    cfg = config(npz, 'cfg_json')
    memory = MultilevelMemory(cfg['in_channels'], cfg['scale'], cfg['queue'], cfg['vmp_layer'])
    load(memory, npz).eval()
    # with and without gradients the memory is kept in different ways
    for grad in (False, True):
        memory.reset()
        with torch.set_grad_enabled(grad):
            for frame in range(cfg['frames']):
                levels = [
                    sparse(tensor(npz, f'in_coords_t{frame}_l{i}'), tensor(npz, f'in_feats_t{frame}_l{i}'), stride)
                    for i, stride in enumerate(cfg['strides'])
                ]
                levels = memory(levels)
                for i, stride in enumerate(cfg['strides']):
                    name = f't{frame}_l{i}'
                    assert_close(levels[i].features, npz[f'out_feats_{name}'], f'out_feats_{name}', atol=1e-4)
                    coords, features, _ = memory.states[i].rows()
                    coords = torch.cat([coords[:, :1], coords[:, 1:] * stride - GRID_ORIGIN], 1).long()
                    order = order_of(coords)
                    assert torch.equal(coords[order], tensor(npz, f'acc_coords_{name}').long())
                    assert_close(features[order], npz[f'acc_feats_{name}'], f'acc_feats_{name}', atol=1e-4)


def check_memory(npz):
    _check_memory(npz)


def check_geo_aware_pooling(npz):
    pool = load(GeoAwarePooling(config(npz, 'cfg_json')['channel_proj']), npz).eval()
    features, sp, xyz = tensor(npz, 'in_feats'), tensor(npz, 'in_sp').long(), tensor(npz, 'in_xyz')
    out, weights = pool(features, sp, xyz)
    assert_close(out, npz['out'], 'out', atol=1e-4)
    assert_close(weights, npz['out_weights'], 'out_weights', atol=1e-4)
    assert_close(pool(features, sp, list(xyz), with_xyz=True)[0], npz['out_with_xyz'], 'out_with_xyz', atol=1e-4)


def stored_predictions(npz, prefix, samples, mode, stage=''):
    """The predictions of a stage as the file has them."""

    def each(name):
        names = [f'{prefix}{stage}{name}_{i}' for i in range(samples)]
        return [tensor(npz, name) for name in names] if names[0] in npz.files else None

    return Predictions(
        each('cls_preds'),
        each('masks'),
        mode,
        sem_preds=each('sem_preds'),
        bboxes=each('bboxes'),
        queries=each('queries'),
    )


def check_mix_query_decoder(npz):
    cfg = config(npz, 'cfg_json')
    decoder = load(ScanNetMixQueryDecoder(**cfg), npz).eval()
    samples = sum(name.startswith('in_sp_feats_') for name in npz.files)
    sp_feats = [tensor(npz, f'in_sp_feats_{i}') for i in range(samples)]
    points = [tensor(npz, f'in_pt_feats_{i}') for i in range(samples)]
    sp = [tensor(npz, f'in_sp_{i}').long() for i in range(samples)]
    queries = [x[tensor(npz, f'in_query_ids_{i}').long()] for i, x in enumerate(sp_feats)]
    weights = tensor(npz, 'in_xyz_weights').split([len(x) for x in points])
    out = decoder(sp_feats, points, queries, sp, weights)
    for number, stage in enumerate([*out.aux, out]):
        name = 'out_' if stage is out else f'aux{number}_'
        assert stage.mask_mode == cfg['mask_pred_mode'][number]
        for what in ('cls_preds', 'masks', 'bboxes', 'sem_preds', 'queries'):
            for i in range(samples):
                key = f'{name}{what}_{i}'
                if key in npz.files:
                    assert_close(getattr(stage, what)[i], npz[key], key, atol=1e-4)


def check_mixed_criterion(npz):
    cfg = config(npz, 'cfg_json')
    criterion = MODELS.build(dict(type='ScanNetMixedCriterion', **cfg['criterion']))
    samples = sum(name.startswith('gt_labels_') for name in npz.files)
    modes = cfg['mask_pred_mode']
    stages = [stored_predictions(npz, 'pred_', samples, mode, f'aux{i}_') for i, mode in enumerate(modes[:-1])]
    final = stored_predictions(npz, 'pred_', samples, modes[-1])
    final.aux = stages
    targets = []
    for i in range(samples):
        points = tensor(npz, f'gt_p_masks_{i}')
        count = len(points)
        query_masks = tensor(npz, f'gt_query_masks_{i}')
        box = tensor(npz, f'gt_bboxes_{i}')[:count]
        targets.append(
            InstanceTargets(
                tensor(npz, f'gt_labels_{i}').long()[:count],
                tensor(npz, f'gt_sp_masks_{i}')[:count],
                points,
                query_masks[:count],
                query_masks[count:].float().argmax(0),
                torch.cat([box[:, :3] - box[:, 3:6] / 2, box[:, :3] + box[:, 3:6] / 2], 1),
                tensor(npz, f'in_centers_{i}'),
            )
        )
    for i, (query, instance) in enumerate(criterion.inst_criterion.match(final, targets)):
        found = sorted(zip(query.tolist(), instance.tolist()))
        assert found == sorted(zip(npz[f'match_q_{i}'].tolist(), npz[f'match_gt_{i}'].tolist()))
    losses = criterion(final, targets)
    assert_close(losses['inst_loss'], npz['out_inst_loss_bbox'], 'inst_loss with boxes', atol=1e-4)
    assert_close(losses['seg_loss'], npz['out_seg_loss'], 'seg_loss', atol=1e-4)
    for stage in (final, *stages):
        stage.bboxes = None
    assert_close(criterion(final, targets)['inst_loss'], npz['out_inst_loss_nobbox'], 'inst_loss', atol=1e-4)


def check_merge_head(npz):
    cfg = config(npz, 'cfg_json')
    head = MergeHead(cfg['in_channels'], cfg['out_channels'], cfg['d_hidden'], cfg['norm'])
    assert_close(load(head, npz).eval()(tensor(npz, 'in_queries')), npz['out'], 'out')


def check_merge_criterion(npz):
    cfg = config(npz, 'cfg_json')
    criterion = ScanNetMergeCriterion_Fast(tmp_weight=cfg['tmp_weight'], tau=cfg['tau_tmp'])
    owner = tensor(npz, 'in_query_owner').long()
    ids = torch.arange(cfg['num_instances'])
    owners = [[frame[None] == ids[:, None] for frame in sample] for sample in owner]
    loss = criterion([list(sample) for sample in tensor(npz, 'in_feats')], owners)['merge_loss_tmp']
    assert_close(loss, npz['out_tmp'], 'out_tmp')


def check_online_merge(npz):
    cfg = config(npz, 'cfg_json')
    merge = OnlineMerge(cfg['inscat_topk_insts'], cfg['use_bbox'])
    for t in range(cfg['frames']):
        names = ('labels', 'scores', 'queries', 'qfeats', 'sem', 'xyz')
        values = [tensor(npz, f'in_{name}_t{t}') for name in names]
        boxes = box_corners(values[-1], tensor(npz, f'in_bbox_t{t}'))
        merge.push(tensor(npz, f'in_masks_t{t}'), Instances(*values, boxes))
        number, best = merge.best()
        assert torch.equal(merge.masks(number), tensor(npz, f'out_masks_t{t}'))
        assert torch.equal(best.labels, tensor(npz, f'out_labels_t{t}').long())
        assert_close(best.scores, npz[f'out_scores_t{t}'], f'scores_t{t}')
        assert_close(best.queries, npz[f'out_queries_t{t}'], f'queries_t{t}')
        if cfg['use_bbox']:
            assert_close(best.boxes, npz[f'out_bbox_t{t}'], f'bbox_t{t}')


def check_postprocess(npz):
    cfg = config(npz, 'cfg_json')
    found = frame_instances(tensor(npz, 'in_cls_preds'), tensor(npz, 'in_masks'), **check_test_cfg(_test_fields(cfg)))
    assert torch.equal(found.query, tensor(npz, 'out_query_ids').long())
    assert torch.equal(found.masks, tensor(npz, 'out_inst_masks'))
    assert torch.equal(found.labels, tensor(npz, 'out_labels').long())
    assert_close(found.scores, npz['out_scores'], 'scores')
    sem = tensor(npz, 'in_sem_preds')
    semantic = point_semantics(sem, tensor(npz, 'in_sp').long(), sem.shape[1] - 1)
    assert torch.equal(semantic, tensor(npz, 'out_semantic').long())


def _test_fields(cfg):
    return {name: value for name, value in cfg.items() if name != 'num_classes'}
