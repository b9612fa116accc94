# Full fine-tuning with voxels of two thirds of the size, as 0.05 m is of 0.075 m. No weight has the grid in its shape:
# all of them load, nothing is interpolated; the filters' size in metres changes, and the plane has 96 x 96 cells of 1.07 m.
#   tools/train.py FILE --load-from CKPT
_base_ = ['./city_bevfusion_4cam_80beam_finetune.py']

voxel_size = [0.4 / 3, 0.4 / 3, 0.2]
model = dict(data_preprocessor=dict(voxelize_cfg=dict(max_voxels=[60000, 80000])))
