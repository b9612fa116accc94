# ESAM on single frames, class-agnostic, 200 semantic classes. Source: Xu et al., "EmbodiedSAM", ICLR 2025.
_base_ = ['./esam_bifusion.py']
voxel_size = 0.02  # metres
num_instance_classes = 1  # 1: class-agnostic
num_semantic_classes = 200
feature_channels = 96

model = dict(
    type='ScanNet200MixFormer3D',
    data_preprocessor=dict(type='Det3DDataPreprocessor_'),
    voxel_size=voxel_size,
    num_classes=num_instance_classes,
    query_thr=0.5,  # least share of the superpoints that are queries in training
    backbone=dict(
        type='Res16UNet34C',
        in_channels=3,
        out_channels=feature_channels,
        config=dict(dilations=[1, 1, 1, 1], conv1_kernel_size=5, bn_momentum=0.02),
    ),
    pool=dict(type='GeoAwarePooling', channel_proj=feature_channels),
    decoder=dict(
        type='ScanNetMixQueryDecoder',
        num_layers=3,
        cross_attn_mode=['', 'SP', 'SP', 'SP'],
        mask_pred_mode=['SP', 'SP', 'P', 'P'],
        num_instance_classes=num_instance_classes,
        num_semantic_classes=num_semantic_classes,
        num_semantic_linears=1,
        in_channels=feature_channels,
        d_model=256,
        num_heads=8,
        hidden_dim=1024,
        dropout=0.0,
        activation_fn='gelu',
        attn_mask=True,
        fix_attention=True,
        objectness_flag=False,
        bbox_flag=False,
    ),
    criterion=dict(
        type='ScanNetMixedCriterion',
        num_semantic_classes=num_semantic_classes,
        sem_criterion=dict(type='ScanNetSemanticCriterion', ignore_index=num_semantic_classes, loss_weight=0.5),
        inst_criterion=dict(
            type='MixedInstanceCriterion',
            matcher=dict(
                type='SparseMatcher',
                costs=[
                    dict(type='QueryClassificationCost', weight=0.5),
                    dict(type='MaskBCECost', weight=1.0),
                    dict(type='MaskDiceCost', weight=1.0),
                ],
                topk=1,
            ),
            loss_weight=[0.5, 1.0, 1.0, 0.5, 0.5],  # class, mask cross entropy, mask dice, quality, box
            num_classes=num_instance_classes,
            non_object_weight=0.1,
            fix_dice_loss_weight=True,  # dice counts 4 times its mean in the last stage, 4 / batch in the others
            iter_matcher=True,
            fix_mean_loss=True,
        ),
    ),
    train_cfg=None,
    test_cfg=dict(
        topk_insts=100,
        inst_score_thr=0.0,
        pan_score_thr=0.5,
        npoint_thr=100,  # points
        obj_normalization=True,
        sp_score_thr=0.4,
        nms=True,
        matrix_nms_kernel='linear',
        stuff_classes=[0, 1],
    ),
)

linked_fields_model = [
    dict(
        name='num_instance_classes',
        value=num_instance_classes,
        to=[
            'model.num_classes',
            'model.decoder.num_instance_classes',
            'model.criterion.inst_criterion.num_classes',
        ],
    ),
    dict(
        name='num_semantic_classes',
        value=num_semantic_classes,
        to=[
            'model.decoder.num_semantic_classes',
            'model.criterion.num_semantic_classes',
            'model.criterion.sem_criterion.ignore_index',
        ],
    ),
]
