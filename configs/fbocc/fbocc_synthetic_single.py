# The single-frame twin of fbocc_synthetic.py: no memory, samples in random order, everything else equal.
_base_ = './fbocc_synthetic.py'

model = dict(history_cat_num=0)
train_dataloader = dict(sampler=dict(shuffle=True), batch_sampler=None, dataset=dict(sequences_split_num=None))
val_dataloader = dict(batch_sampler=None, dataset=dict(sequences_split_num=None))
test_dataloader = val_dataloader
custom_hooks = []
