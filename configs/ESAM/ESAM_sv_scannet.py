# ESAM, 18 instance and 20 semantic classes, single frames of ScanNet.
_base_ = [
    '../_base_/esam_runtime.py',
    '../_base_/models/esam_sv.py',
    '../_base_/datasets/scannet_sv.py',
    '../_base_/schedules/esam_128e.py',
]
num_instance_classes = 18
num_semantic_classes = 20
