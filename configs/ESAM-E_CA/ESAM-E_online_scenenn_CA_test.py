# Evaluation on SceneNN of a model trained on ScanNet: tools/create_data.py scenenn_mv
_base_ = ['./ESAM-E_online_scannet200_CA.py']
data_root = 'data/scenenn-mv_fast/'
rec_root = 'data/scenenn'
load_test = dict(_base_.load_test, dataset_type='scenenn', rec_root=rec_root)
test_pipeline = [load_test, dict(type='LabelsFromNYU40'), *_base_.test_pipeline[2:]]
val_dataloader = dict(dataset=dict(ann_file='scenenn_mv_oneformer3d_infos_val.pkl', pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(test_cfg=dict(inst_score_thr=0.3))
