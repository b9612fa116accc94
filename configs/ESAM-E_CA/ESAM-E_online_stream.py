# ESAM-E frame by frame: occforge.systems.esam.OnlineSegmentor, tools/esam_stream.py.
_base_ = ['./ESAM-E_online_scannet200_CA.py']
model = dict(type='ScanNet200MixFormer3D_Stream', test_cfg=dict(inscat_topk_insts=200))
