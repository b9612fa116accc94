# Answers on 800 x 800 x 64 voxels of 0.1 m: the encoded volume is asked at the centres of fine voxels. Needs the city's
# fine labels: tools/create_data.py synthetic_city --root-path data/synthetic_city_fine --label-refine 4
# (the README's: --scenes 40 --keyframes 5 --image-size 512x288)
_base_ = './fusion_occ_synthetic.py'

data_root = 'data/synthetic_city_fine'

# Surfaces are a fine voxel or two thick: "free" is three times as frequent as among voxels of 0.4 m, and weighs less.
class_weight = [*_base_.class_weight[:-1], 0.22]

model = dict(
    query_ratio=4,
    query_budget=200000,
    query_skip_free=True,
    loss_occ=dict(
        type='ChunkedOccupancyLoss',
        chunk_size=1 << 17,
        class_weight=class_weight,
        free_keep=1.0,
        near_free_keep=1.0,
    ),
)

load_labels = dict(type='LoadFineOccGT', file_name='labels_4x.npz', form='voxels')
train_pipeline = [
    _base_.read_frames_train,
    load_labels,
    *_base_.read_labelled_points,
    _base_.flip_train,
    _base_.depth_train,
    _base_.pack,
]
test_pipeline = [
    _base_.read_frames_test,
    load_labels,
    *_base_.read_points,
    _base_.flip_test,
    _base_.depth_test,
    _base_.pack,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
