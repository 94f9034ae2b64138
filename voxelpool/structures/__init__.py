"""The data that flows between the rooms: a grid, voxels in it, boxes around objects."""

from voxelpool.structures.boxes3d import Boxes3D, wrap_angle
from voxelpool.structures.voxel_grid import VoxelGrid
from voxelpool.structures.voxels import StaticVoxels, Voxels

__all__ = ["Boxes3D", "StaticVoxels", "VoxelGrid", "Voxels", "wrap_angle"]
