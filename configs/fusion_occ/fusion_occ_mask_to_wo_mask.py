# A few epochs over all voxels after a training over the observed ones (fusion_occ_base_mask.py): the networks are
# the same, so all of its weights load.
_base_ = './fusion_occ_base_wo_mask.py'
max_epochs = 4
lr = 2e-5
load_from = dict(_delete_=True, path='work_dirs/fusion_occ_base_mask/epoch_24.pth', min_loaded=1.0)
