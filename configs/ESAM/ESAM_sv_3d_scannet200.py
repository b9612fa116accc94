# The name that the document's table also gives.
_base_ = ['./ESAM_sv_3d_scannet.py']
