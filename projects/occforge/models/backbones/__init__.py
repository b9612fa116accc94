from .sparse_encoder import CustomSparseEncoder

__all__ = ['CustomSparseEncoder']
