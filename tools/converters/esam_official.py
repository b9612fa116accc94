#!/usr/bin/env python3
"""Official ESAM and Mask3D checkpoints under the names of our configs.

tools/converters/esam_official.py ESAM_CA_online_epoch_128.pth out.pth [--config configs/ESAM_CA/...]

Our models keep MinkowskiEngine's names and shapes (``kernel`` (taps, in, out)), so this only removes what stands in
front of the modules (``model.``, ``module.``). A file with spconv 2 kernels (``weight`` (out, kx, ky, kz, in)) loads
as well: the layers read both.
"""

from _frame import Converter, run

CONVERTER = Converter(
    __doc__,
    key_map=[dict(regex=r'^(?:module\.|model\.)+', to='')],
    targets=['backbone', 'bi_encoder', 'memory', 'neck', 'pool', 'decoder', 'merge_head', 'conv'],
)

if __name__ == '__main__':
    run(CONVERTER)
