# RayIoU at every validation.
_base_ = './fusion_occ_unified.py'
val_evaluator = _base_.test_evaluator
