"""Rooms that are made up, in the form of ScanNet's exports: frames, poses, labelled meshes, masks."""

from .generate import generate
from .room import Room, make_room

__all__ = ['Room', 'generate', 'make_room']
