# The small FusionOcc on a vehicle of one's own: four cameras, a LiDAR of 80 beams, and eight classes (and "free") in
# place of Occ3D's seventeen. The data:
#   tools/create_data.py synthetic_city --rig four_cameras_80_beams --root-path data/synthetic_city_4cam
# From scratch, or with --load-from CKPT from another vehicle's checkpoint: nothing in the model has the number of
# cameras or beams in its shape, class rows of the same name move, other classes start from a related one.
_base_ = ['../fusion_occ/fusion_occ_synthetic.py']

data_root = 'data/synthetic_city_4cam'
camera_names = ['CAM_FRONT', 'CAM_LEFT', 'CAM_RIGHT', 'CAM_BACK']
scene_fraction = 1.0  # of the training scenes: how much has been labelled for the new vehicle

classes = ['car', 'truck', 'bus', 'two_wheeler', 'pedestrian', 'driveable_surface', 'ground', 'static', 'free']
num_classes = len(classes)
# what becomes of Occ3D's other classes (None: neither trained nor scored)
class_map = dict(
    others=None,
    barrier='static',
    bicycle='two_wheeler',
    construction_vehicle='truck',
    motorcycle='two_wheeler',
    traffic_cone='static',
    trailer='truck',
    other_flat='ground',
    sidewalk='ground',
    terrain='ground',
    manmade='static',
    vegetation='static',
)
class_weight = [1.15, 1.2, 1.2, 1.4, 1.25, 1.0, 1.0, 1.0, 0.65]  # in the order of classes
image_class_weight = [1.3, 1.4, 1.4, 2.0, 1.6, 1.0, 1.0, 1.0, 1.0]

load_from = dict(
    path=None,  # --load-from gives the file
    class_aliases=dict(two_wheeler='bicycle', ground='sidewalk', static='manmade'),
    min_loaded=0.9,
)
model = dict(
    num_classes=num_classes,
    img_view_transformer=dict(seg_num_classes=num_classes, seg_class_weight=image_class_weight),
    loss_occ=dict(class_weight=class_weight),
)

own = dict(data_root=data_root, camera_names=camera_names, metainfo=dict(classes=classes), class_map=class_map)
train_dataloader = dict(batch_size=2, dataset=dict(scene_fraction=scene_fraction, **own))
val_dataloader = dict(dataset=own)
test_dataloader = dict(dataset=own)

image_epochs = 0  # the whole model from the start: what is compared starts from a checkpoint, or from nothing
max_epochs = 8
lr = 1.6e-2  # the best from scratch of 4e-3, 8e-3 and this; starting from a checkpoint smaller ones are

linked_fields_scenes = [dict(name='scene_fraction', value=scene_fraction, to='train_dataloader.dataset.scene_fraction')]
