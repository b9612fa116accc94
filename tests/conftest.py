"""Imported before any test module: makes mmdet3d importable on the mmcv-lite lane and registers our modules."""

import occforge  # noqa: F401
