"""LiDAR point clouds: 3D objects from a spinning scanner, on any machine."""
