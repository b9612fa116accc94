"""Golden check of the LiDAR branch."""

import numpy as np
import occforge  # noqa: F401  (registers the encoder)
import torch
from cases import config, parameters, tensor
from mmdet3d.registry import MODELS


def check_lidar_encoder(npz):
    encoder = MODELS.build(config(npz)).eval()
    scalars = {key for key, value in encoder.state_dict().items() if value.dim() == 0}
    state = {key: value.reshape(()) if key in scalars else value for key, value in parameters(npz).items()}
    official = parameters(npz, 'mmcv_layout/')
    assert official and set(official) <= set(state)
    points = [tensor(npz, f'points{n}') for n in range(sum(key.startswith('points') for key in npz))]
    for kernels in ({}, official):
        encoder.load_state_dict({**state, **kernels}, strict=True)
        with torch.no_grad():
            voxels = encoder.voxelize(points)
            final = encoder.conv_out(encoder.encoder_layers(encoder.conv_input(voxels)))
            volume = encoder(points)
        np.testing.assert_array_equal(voxels.coords, npz['voxel_coords_bxyz'])
        np.testing.assert_allclose(voxels.features, npz['voxel_feats'], rtol=1e-4, atol=1e-5)
        order = np.lexsort(npz['final_sparse_coords_bxyz'].T[::-1])
        np.testing.assert_array_equal(final.coords, npz['final_sparse_coords_bxyz'][order])
        np.testing.assert_allclose(final.features, npz['final_sparse_feats'][order], rtol=1e-4, atol=1e-5)
        expected = npz['out_dense_B_C_Z_X_Y'].swapaxes(-1, -2)
        np.testing.assert_allclose(volume, expected, rtol=1e-4, atol=1e-5)
