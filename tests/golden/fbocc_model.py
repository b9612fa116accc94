"""FB-OCC's modules and the whole detector against the reference implementation's outputs.

The reference gives cameras as ``rots`` and ``trans`` in the key ego frame and volumes as (B, C, Y, X, Z).
"""

import numpy as np
import torch
from cases import assert_close, config, parameters, tensor
from mmdet3d.registry import MODELS
from mmengine.registry import DefaultScope
from occforge.models.losses import (
    distance_map,
    geometric_scaling_loss,
    lovasz_softmax,
    semantic_scaling_loss,
    voxel_focal_loss,
)
from occforge.ops import frustum_indices, frustum_pool
from occforge.systems.fbocc.fb_occ import FBOCC, Cameras
from occforge.systems.fbocc.history import FrameInfo, HistoryMemory, augmentation_matrix, warp_grid
from torch.nn import functional as F

# in one place, so that `type` names of the files' configs are looked up in mmdet3d's registry
DefaultScope.get_instance('golden', scope_name='mmdet3d')

# of the gradients of deep networks: their largest entries agree to a few float32 roundings
GRAD = dict(rtol=1e-3, atol=2e-5)


def _build(cfg, state):
    module = MODELS.build(cfg)
    module.load_state_dict(state)
    module.eval()
    return module


def _cameras(npz, prefix='in/') -> Cameras:
    rots, trans = tensor(npz, f'{prefix}rots'), tensor(npz, f'{prefix}trans')
    pose = torch.eye(4).repeat(*rots.shape[:2], 1, 1)
    pose[..., :3, :3], pose[..., :3, 3] = rots, trans
    return Cameras(pose, *(tensor(npz, prefix + name) for name in ('intrins', 'post_rots', 'post_trans', 'bda')))


def check_depth_net(npz):
    net = _build(dict(type='CM_DepthNet', **config(npz)), parameters(npz, 'param/'))
    vector = net.get_mlp_input(tensor(npz, 'in/rots'), tensor(npz, 'in/trans'), *_cameras(npz)[1:])
    assert_close(vector, npz['out/mlp_input'], 'mlp_input')
    x = tensor(npz, 'in/x')
    context, depth = net(x, vector)
    assert_close(context, npz['out/context'], 'context')
    assert_close(depth, npz['out/depth'], 'depth')
    bins = net.depth_bins(tensor(npz, 'in/gt_depth'), tuple(x.shape[-2:]))
    hot = F.one_hot(bins, depth.shape[2] + 1)[..., 1:].flatten(0, 2)
    assert torch.equal(hot, tensor(npz, 'out/gt_onehot').long()), 'gt_onehot'
    leaf = tensor(npz, 'out/depth').requires_grad_()
    loss = net.get_depth_loss(tensor(npz, 'in/gt_depth'), leaf)
    assert_close(loss, npz['out/loss_depth'], 'loss_depth')
    loss.backward()
    assert_close(leaf.grad, npz['grad/depth'], 'grad depth')


def check_img_neck_custom_fpn(npz):
    neck = _build(dict(type='CustomFPN', **config(npz)), parameters(npz, 'param/'))
    assert_close(neck([tensor(npz, 'in/x0'), tensor(npz, 'in/x1')]), npz['out/y'], 'y')


def check_forward_projection(npz):
    view = _build(dict(type='LSSViewTransformerFunction3D', **config(npz)), parameters(npz, 'param/'))
    assert_close(view.frustum, npz['frustum'], 'frustum')
    for name in ('dx', 'bx', 'nx'):
        fresh = getattr(MODELS.build(dict(type='LSSViewTransformerFunction3D', **config(npz))), name)
        assert_close(fresh, npz[f'param/{name}'], name)
    cameras = _cameras(npz)
    points = view.ego_points(*cameras)
    assert_close(points, npz['out/points_ego'], 'points_ego', rtol=1e-4, atol=1e-4)
    grid = view.grid_lower, view.grid_interval, view.grid_size
    stored = frustum_indices(tensor(npz, 'out/points_ego'), *grid)
    assert int(stored.offset[-1]) == int(npz['out/num_kept_points'])
    assert int((stored.offset.diff() > 0).sum()) == int(npz['out/num_intervals'])
    depth, context = (tensor(npz, f'in/{name}').requires_grad_() for name in ('depth', 'context'))
    # a point whose stored place lies within rounding of a cell's side may have changed sides: then the stored ones
    moved = stored.voxel != frustum_indices(points, *grid).voxel
    assert int(moved.sum()) <= 2, f'{int(moved.sum())} points fall into other cells'
    if moved.any():
        bev = frustum_pool(depth, context, stored, view.grid_size).permute(0, 1, 3, 4, 2)
    else:
        bev = view(context, depth, *cameras)
    assert_close(bev, npz['out/bev_feat'], 'bev_feat')
    found = torch.autograd.grad(bev, (depth, context), tensor(npz, 'grad/cotangent'))
    for name, grad in zip(('depth', 'context'), found):
        assert_close(grad, npz[f'grad/{name}'], f'grad {name}')


def check_backward_projection(npz):
    module = _build(config(npz), parameters(npz, 'param/'))
    cameras = _cameras(npz)
    uv, metres, valid = module.transformer.encoder.project(*cameras)
    expected = tensor(npz, 'mid/per_cam_mask').transpose(0, 1)
    assert torch.equal(valid, expected), 'per_cam_mask'
    # behind a camera the reference divides by the smallest depth, which magnifies rounding; nobody reads those
    for name, found in (('reference_points_cam', uv), ('query_depth', metres[..., None])):
        stored = tensor(npz, f'mid/{name}').transpose(0, 1)
        assert_close(found[valid], stored[valid].numpy(), name, atol=1e-4)
    context, depth, lss_bev = (tensor(npz, f'in/{name}').requires_grad_() for name in ('context', 'depth', 'lss_bev'))
    bev = module(context, depth, lss_bev, cameras)
    assert_close(bev, npz['out/bev'], 'bev', atol=2e-5)
    grads = torch.autograd.grad(bev, (context, depth, lss_bev), tensor(npz, 'grad/cotangent'))
    for name, grad in zip(('context', 'depth', 'lss_bev'), grads):
        assert_close(grad, npz[f'grad/{name}'], f'grad {name}', **GRAD)


def check_encoder3d(npz):
    cfg = config(npz)
    common = dict(norm_cfg=dict(type='BN3d'))
    backbone = dict(
        type='VoxelResNet3D', n_input_channels=cfg['n_input_channels'], block_inplanes=cfg['block_inplanes'], **common
    )
    neck = dict(type='FPN3D', in_channels=cfg['block_inplanes'], out_channels=cfg['voxel_out'], **common)
    backbone = _build(backbone, parameters(npz, 'backbone_param/'))
    neck = _build(neck, parameters(npz, 'neck_param/'))
    for mode in ('eval', 'train'):
        backbone.train(mode == 'train')
        neck.train(mode == 'train')
        levels = backbone(tensor(npz, 'in/x'))
        for i, level in enumerate(levels):
            assert_close(level, npz[f'out/{mode}/backbone{i}'], f'{mode} backbone{i}', atol=2e-5)
        for i, level in enumerate(neck(levels)):
            assert_close(level, npz[f'out/{mode}/fpn{i}'], f'{mode} fpn{i}', atol=2e-5)


def check_occ_head_forward(npz):
    cfg = config(npz)
    cfg.pop('spatial')
    head = _build(dict(type='OccHead', **cfg), parameters(npz, 'param/'))
    assert_close(head.class_weights, npz['buffer/class_weights'], 'class_weights')
    levels = [tensor(npz, f'in/level{i}') for i in range(cfg['num_level'])]
    logits = head(levels)
    assert_close(logits, npz['out/eval/logits'], 'eval logits', atol=2e-5)
    classes = head.semantics(head.probabilities(logits))
    assert torch.equal(classes[0], tensor(npz, 'out/eval/pred_occ3d')), 'pred_occ3d'
    head.train()
    assert_close(head(levels), npz['out/train/logits'], 'train logits', atol=2e-5)


def _head(**changes):
    return MODELS.build(dict(type='OccHead', in_channels=8, out_channel=19, num_level=1, use_dice_loss=True, **changes))


def _check_losses_of_a_scene(npz):
    logits = (tensor(npz, 'in/logits_q').float() * float(npz['in/logits_scale'])).requires_grad_()
    target = tensor(npz, 'in/target')
    head = _head()
    assert_close(head.class_weights, npz['buffer/class_weights'], 'class_weights')
    assert_close(distance_map(*target.shape[1:3]), npz['buffer/focal_distance_map'], 'focal_distance_map')
    losses = head.loss(logits, target)
    for name, loss in losses.items():
        assert_close(loss, npz[f'out/{name}'], name)
    sum(losses.values()).backward()
    assert_close(
        logits.grad[:, :, 96:104, 96:104], npz['grad/logits_crop_y96_104_x96_104'], 'grad', rtol=1e-3, atol=1e-7
    )
    assert_close(logits.grad.norm(), npz['grad/l2norm'], 'grad l2norm', rtol=1e-3)
    plain = _head(use_focal_loss=False).loss(logits, target)['loss_voxel_ce_c_0']
    assert_close(plain, npz['out/loss_voxel_ce_plain_cross_entropy'], 'plain cross entropy')


def _check_loss_terms(npz, case):
    stored, target = tensor(npz, f'{case}/in/logits'), tensor(npz, f'{case}/in/target')
    chosen = (target.flatten() != 255).nonzero().squeeze(1)
    labels = target.flatten()[chosen].long()
    classes = range(int(stored.shape[1] == 19), stored.shape[1] - 1)
    distance = distance_map(*target.shape[1:3])
    if f'{case}/buffer/distance_map' in npz.files:
        assert_close(distance, npz[f'{case}/buffer/distance_map'], f'{case} distance_map')
    column_weight = distance.flatten()[chosen // target.shape[3] % distance.numel()]
    class_weights = _head().class_weights
    terms = dict(
        sem_scal=lambda rows: semantic_scaling_loss(rows.softmax(dim=1), labels, classes),
        geo_scal=lambda rows: geometric_scaling_loss(rows.softmax(dim=1), labels, stored.shape[1] - 1),
        lovasz=lambda rows: lovasz_softmax(rows.softmax(dim=1), labels),
        focal_weighted=lambda rows: 100 * voxel_focal_loss(rows, labels, class_weights, column_weight),
    )
    for name, term in terms.items():
        if f'{case}/out/{name}' not in npz.files:
            continue
        logits = stored.clone().requires_grad_()
        loss = term(logits.permute(0, 2, 3, 4, 1).flatten(0, 3)[chosen])
        assert_close(loss, npz[f'{case}/out/{name}'], f'{case} {name}')
        loss.backward()
        expected = npz[f'{case}/grad/{name}'].astype(np.float32)  # stored as float16
        atol = 1e-6 + 1e-3 * abs(expected).max()
        assert_close(logits.grad, expected, f'{case} grad {name}', rtol=2e-3, atol=atol)


def check_occ_losses(npz):
    if 'in/logits_q' in npz.files:
        _check_losses_of_a_scene(npz)
        return
    for case in sorted({name.split('/')[0] for name in npz.files if name.endswith('/in/logits')}):
        _check_loss_terms(npz, case)


def _frames(npz, step, prefix='in/'):
    prefix = f't{step}/{prefix}' if prefix == 'in/' and f't{step}/in/bda' in npz.files else f'in/t{step}/'
    return [
        FrameInfo(int(group), bool(start), motion.double())
        for group, start, motion in zip(
            tensor(npz, f'{prefix}sequence_group_idx'),
            tensor(npz, f'{prefix}start_of_sequence'),
            tensor(npz, f'{prefix}curr_to_prev_ego_rt'),
        )
    ]


def _history_only(npz):
    """An ``FBOCC`` that can only fuse."""
    cfg = config(npz)
    model = FBOCC(
        dict(
            type='LSSViewTransformerFunction3D',
            grid_config=dict(cfg['grid'], depth=[2.0, 42.0, 2.0]),
            input_size=(64, 176),
        ),
        *[dict(type='ReLU')] * 4,
        single_bev_num_channels=cfg['c'],
        history_cat_num=cfg['hist'],
    )
    model.load_state_dict(parameters(npz, 'param/'))
    model.eval()
    return model


def check_history_fusion(npz):
    model = _history_only(npz)
    steps = sorted({int(name.split('/')[1][1:]) for name in npz.files if name.startswith('in/t')})
    memory = HistoryMemory()
    for step in steps:
        volume, bda = tensor(npz, f'in/t{step}/bev'), tensor(npz, f'in/t{step}/bda')
        frames = _frames(npz, step)
        fused = model.fuse_history(volume, bda, frames, memory)
        assert_close(fused, npz[f'out/do_history/t{step}/fused'], f't{step} fused', atol=2e-5)
        states = [memory._states[frame.sequence] for frame in frames]
        ages = torch.stack([state.ages for state in states])
        assert_close(ages, npz[f'out/do_history/t{step}/history_sweep_time'], f't{step} history_sweep_time')
        kept = torch.stack([state.frames for state in states])  # (B, K, C, Y, X, Z)
        kept = kept.permute(0, 1, 2, 5, 3, 4).flatten(1, 2)
        assert_close(kept, npz[f'out/do_history/t{step}/history_bev'], f't{step} history_bev', atol=2e-5)
        alone = model.fuse_history(volume, bda, frames, HistoryMemory(), remember=False)
        assert_close(alone, npz[f'out/no_history/t{step}/fused'], f't{step} fused without history', atol=2e-5)
    before, after = (augmentation_matrix(tensor(npz, f'in/t{t}/bda')[0].double()) for t in (0, 1))
    transform = before @ tensor(npz, 'in/t1/curr_to_prev_ego_rt')[0].double() @ torch.linalg.inv(after)
    view = model.forward_projection
    grid = warp_grid(npz['grid/out'].shape[1:4], view.grid_lower, view.grid_interval, transform)
    assert_close(grid[None], npz['grid/out'], 'grid', atol=1e-4)


def check_detector_end_to_end(npz):
    model = _build(config(npz), parameters(npz, 'param/'))
    steps = sorted(
        {int(name.split('/')[0][1:]) for name in npz.files if name.startswith('t') and '/in/img_feat' in name}
    )
    head = model.occupancy_head

    def run(step, features, memory, remember):
        cameras = _cameras(npz, f't{step}/in/')
        volume, depth = model.project(features, cameras)
        volume = model.fuse_history(volume, cameras.bda, _frames(npz, step), memory, remember)
        return model.encode(volume), depth

    memory = HistoryMemory()
    with torch.no_grad():
        for step in steps:
            logits, _ = run(step, tensor(npz, f't{step}/in/img_feat'), memory, True)
            expected = npz[f't{step}/out/logits'].astype(np.float32)
            assert_close(logits, expected, f't{step} logits', rtol=1e-3, atol=1e-3)
            found = head.semantics(head.probabilities(logits))
            # classes may only differ where the stored float16 logits tie
            differ = found != tensor(npz, f't{step}/out/pred_occ3d')
            best = logits[:, 1:].transpose(2, 3).topk(2, dim=1).values
            assert bool((best[:, 0] - best[:, 1])[differ].lt(1e-3).all()), f't{step} pred_occ3d'

    features = tensor(npz, 't0/in/img_feat').requires_grad_()
    logits, depth = run(0, features, HistoryMemory(), False)
    losses = head.loss(logits, tensor(npz, 'train/in/gt_occupancy'))
    losses['loss_depth'] = model.depth_net.get_depth_loss(tensor(npz, 'train/in/gt_depth').float(), depth)
    for name, loss in losses.items():
        assert_close(loss, npz[f'train/out/{name}'], name)
    total = sum(losses.values())
    assert_close(total, npz['train/out/total'], 'total')
    total.backward()
    assert_close(features.grad, npz['train/grad/img_feat'], 'grad img_feat', rtol=1e-3, atol=1e-4)
    names = npz['train/grad/param_norm_names'].tobytes().decode().split('\n')
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = torch.stack([torch.zeros(()) if grads[name] is None else grads[name].norm() for name in names])
    assert_close(found, npz['train/grad/param_norms'], 'gradient norms of the parameters', rtol=2e-3, atol=1e-3)
