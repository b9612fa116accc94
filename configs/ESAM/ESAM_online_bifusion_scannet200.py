# The name that the document's table also gives.
_base_ = ['./ESAM_online_bifusion_scannet.py']
