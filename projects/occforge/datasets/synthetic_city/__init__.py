"""A procedural city, written as a nuScenes dataset with Occ3D labels."""
