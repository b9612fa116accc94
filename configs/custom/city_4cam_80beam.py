# The small FusionOcc on a vehicle of one's own: four cameras and a LiDAR of 80 beams, from scratch. The data:
#   tools/create_data.py synthetic_city --rig four_cameras_80_beams --root-path data/synthetic_city_4cam
# Nothing in the model has the number of cameras or beams in its shape, so a checkpoint of another vehicle fits as it is.
_base_ = ['../fusion_occ/fusion_occ_synthetic.py']

image_epochs = 0  # the whole model from the start: what is compared starts from a checkpoint, or from nothing
max_epochs = 8

data_root = 'data/synthetic_city_4cam'
camera_names = ['CAM_FRONT', 'CAM_LEFT', 'CAM_RIGHT', 'CAM_BACK']
scene_fraction = 1.0  # of the training scenes: how much has been labelled for the new vehicle

train_dataloader = dict(dataset=dict(data_root=data_root, camera_names=camera_names, scene_fraction=scene_fraction))
val_dataloader = dict(dataset=dict(data_root=data_root, camera_names=camera_names))
test_dataloader = dict(dataset=dict(data_root=data_root, camera_names=camera_names))

linked_fields_scenes = [dict(name='scene_fraction', value=scene_fraction, to='train_dataloader.dataset.scene_fraction')]
