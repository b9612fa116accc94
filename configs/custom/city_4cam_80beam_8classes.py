# The vehicle of city_4cam_80beam.py with eight classes of its own (and "free") in place of Occ3D's seventeen, from
# another vehicle's checkpoint: class rows of the same name move, others start from a related class.
#   tools/train.py configs/custom/city_4cam_80beam_8classes.py --load-from CKPT      without --load-from: from scratch
_base_ = ['./city_4cam_80beam_finetune.py']

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

load_from = dict(class_aliases=dict(two_wheeler='bicycle', ground='sidewalk', static='manmade'))
model = dict(
    num_classes=num_classes,
    img_view_transformer=dict(seg_num_classes=num_classes, seg_class_weight=image_class_weight),
    loss_occ=dict(class_weight=class_weight),
)
own = dict(metainfo=dict(classes=classes), class_map=class_map)
train_dataloader = dict(dataset=own)
val_dataloader = dict(dataset=own)
test_dataloader = dict(dataset=own)
