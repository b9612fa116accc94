# The small BEVFusion on a vehicle of one's own, from scratch: four cameras, a LiDAR of 80 beams, eight classes. The data:
#   tools/create_data.py synthetic_city --rig four_cameras_80_beams --root-path data/synthetic_city_4cam
# All strategies: tools/transfer_study.py --system bevfusion
_base_ = ['../bevfusion/bevfusion_synthetic.py']

data_root = 'data/synthetic_city_4cam/'
camera_names = ['CAM_FRONT', 'CAM_LEFT', 'CAM_RIGHT', 'CAM_BACK']
num_cameras = 4
reduce_beams = 80
# in another order than nuScenes' ten: rows of classes move by name
object_classes = ['pedestrian', 'car', 'bus', 'truck', 'bicycle', 'motorcycle', 'traffic_cone', 'barrier']
max_epochs = 5
