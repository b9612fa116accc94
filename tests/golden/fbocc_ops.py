"""Frustum pooling and deformable attention against the reference implementation's two projections."""

import torch
from cases import assert_close, config, parameters, tensor
from occforge.ops import deform_attn, depth_deform_attn, frustum_indices, frustum_pool
from torch.nn import functional as F

LAYER = 'transformer.encoder.layers.0.'


def check_forward_projection(npz):
    grid = config(npz)['grid_config']
    lower, upper, interval = ([grid[axis][i] for axis in 'xyz'] for i in range(3))
    size = [round((high - low) / step) for low, high, step in zip(lower, upper, interval)]
    indices = frustum_indices(tensor(npz, 'out/points_ego'), lower, interval, size)
    assert int(indices.offset[-1]) == int(npz['out/num_kept_points'])
    assert int((indices.offset.diff() > 0).sum()) == int(npz['out/num_intervals'])
    depth, context = (tensor(npz, f'in/{name}').requires_grad_() for name in ('depth', 'context'))
    bev = frustum_pool(depth, context, indices, size).permute(0, 1, 3, 4, 2)  # (B, C, Y, X, Z)
    assert_close(bev, npz['out/bev_feat'], 'bev_feat')
    found = torch.autograd.grad(bev, (depth, context), tensor(npz, 'grad/cotangent'))
    for name, grad in zip(('depth', 'context'), found):
        assert_close(grad, npz[f'grad/{name}'], f'grad {name}')


def check_backward_projection(npz):
    """One encoder layer written out around the two attention operators."""
    weights = parameters(npz, 'param/')
    attention = config(npz)['transformer']['encoder']['transformerlayers']['attn_cfgs'][1]
    first, _, step = attention['dbound']
    points, anchors = (attention['deformable_attention'][name] for name in ('num_points', 'num_Z_anchors'))
    context, depth, lss_bev = (tensor(npz, f'in/{name}').requires_grad_() for name in ('context', 'depth', 'lss_bev'))
    batch, channels, height, width = lss_bev.shape
    heads = 8

    def linear(name, x):
        return F.linear(x, weights[f'{LAYER}{name}.weight'], weights[f'{LAYER}{name}.bias'])

    def norm(number, x):
        return F.layer_norm(x, (channels,), *(weights[f'{LAYER}norms.{number}.{kind}'] for kind in ('weight', 'bias')))

    def places(name, x, count):
        """Offsets (..., H, 1, P, 2) and softmax weights (..., H, 1, P) of the queries."""
        offsets = linear(f'{name}.sampling_offsets', x).unflatten(-1, (heads, 1, count, 2))
        return offsets, linear(f'{name}.attention_weights', x).unflatten(-1, (heads, 1, count)).softmax(-1)

    column, row = (weights[f'positional_encoding.{name}_embed.weight'] for name in ('col', 'row'))
    position = torch.cat([column.expand(height, -1, -1), row[:, None].expand(-1, width, -1)], -1).flatten(0, 1)
    query = weights['bev_embedding.weight'] + lss_bev.flatten(2).transpose(1, 2)

    offsets, share = places('attentions.0', query + position, 4)
    centre = tensor(npz, 'mid/ref_2d')[:, :, None, :, None]  # (B, Q, 1, 1, 1, 2)
    value = linear('attentions.0.value_proj', query).unflatten(-1, (heads, -1))
    found = deform_attn(value, [(height, width)], centre + offsets / torch.tensor([width, height]), share)
    query = linear('attentions.0.output_proj', found) + query
    assert_close(query, npz['mid/after_self_attn'], 'after_self_attn')
    query = norm(0, query)
    assert_close(query, npz['mid/after_norm0'], 'after_norm0')

    # every (camera, query) with an anchor in view is a row; images are numbered b * N + n
    cameras, map_height, map_width = depth.shape[1], *depth.shape[3:]
    camera, sample, place = tensor(npz, 'mid/per_cam_mask').any(-1).nonzero().unbind(1)
    uv = tensor(npz, 'mid/reference_points_cam')[camera, sample, place]  # (R, A, 2)
    metres = tensor(npz, 'mid/query_depth')[camera, sample, place, :, 0]
    bins = ((metres - first) / step).floor().clamp(0, depth.shape[2] - 1).long()
    rows = (query + position)[sample, place]
    offsets, share = places('attentions.1.deformable_attention', rows, points)
    centre = uv.repeat(1, points // anchors, 1)[:, None, None]
    features = context.flatten(0, 1).flatten(2).transpose(1, 2)
    found = depth_deform_attn(
        linear('attentions.1.deformable_attention.value_proj', features).unflatten(-1, (heads, -1)),
        [(map_height, map_width)],
        centre + offsets / torch.tensor([map_width, map_height]),
        share,
        depth.flatten(0, 1),
        uv,
        bins,
        sample * cameras + camera,
    )
    number = sample * height * width + place
    total = found.new_zeros(batch * height * width, channels).index_add(0, number, found)
    seen_by = torch.bincount(number, minlength=len(total)).clamp(min=1)[:, None]
    query = linear('attentions.1.output_proj', (total / seen_by).view_as(query)) + query
    assert_close(query, npz['mid/after_cross_attn'], 'after_cross_attn')
    query = norm(1, query)
    query = norm(2, linear('ffns.0.layers.1', linear('ffns.0.layers.0.0', query).relu()) + query)
    bev = query.transpose(1, 2).unflatten(-1, (height, width))
    assert_close(bev, npz['out/bev'], 'bev')
    grads = torch.autograd.grad(bev, (context, depth, lss_bev), tensor(npz, 'grad/cotangent'))
    for name, grad in zip(('context', 'depth', 'lss_bev'), grads):
        assert_close(grad, npz[f'grad/{name}'], f'grad {name}', rtol=1e-3, atol=1e-5)
