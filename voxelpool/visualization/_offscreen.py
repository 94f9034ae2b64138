"""Renders one scene with Open3D, as a program of its own: _offscreen JOB.npz PICTURE.png."""

from __future__ import annotations

import os
import sys

import numpy as np


def main(job_path: str, picture_path: str) -> None:
    """Reads what `perspective` stored, draws it, writes the picture."""
    import open3d as o3d

    rendering = o3d.visualization.rendering
    job = np.load(job_path)
    width, height = (int(edge) for edge in job["size"])
    renderer = rendering.OffscreenRenderer(width, height)
    renderer.scene.set_background([*job["background"], 1.0])
    renderer.scene.view.set_post_processing(False)
    for size in np.unique(job["point_sizes"]):
        rows = job["point_sizes"] == size
        points = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(job["points"][rows]))
        points.colors = o3d.utility.Vector3dVector(job["colors"][rows] / 255.0)
        material = rendering.MaterialRecord()
        material.shader = "defaultUnlit"
        material.point_size = float(size)
        renderer.scene.add_geometry(f"points_{size}", points, material)
    if len(job["triangles"]):
        mesh = o3d.geometry.TriangleMesh(
            o3d.utility.Vector3dVector(job["corners"]), o3d.utility.Vector3iVector(job["triangles"])
        )
        mesh.vertex_colors = o3d.utility.Vector3dVector(job["triangle_colors"] / 255.0)
        material = rendering.MaterialRecord()
        material.shader = "defaultUnlit"
        renderer.scene.add_geometry("cubes", mesh, material)
    for row, (color, line_width) in enumerate(zip(job["line_colors"], job["widths"], strict=True)):
        segments = job[f"lines_{row}"]
        if not len(segments):
            continue
        lines = o3d.geometry.LineSet(
            o3d.utility.Vector3dVector(segments.reshape(-1, 3)),
            o3d.utility.Vector2iVector(np.arange(2 * len(segments)).reshape(-1, 2)),
        )
        lines.paint_uniform_color(color)
        material = rendering.MaterialRecord()
        material.shader = "unlitLine"
        material.line_width = float(line_width)
        renderer.scene.add_geometry(f"lines_{row}", lines, material)
    up = np.array([0.0, 0.0, 1.0])
    renderer.setup_camera(float(job["vertical_fov"]), job["target"], job["eye"], up)
    if not o3d.io.write_image(picture_path, renderer.render_to_image()):
        raise RuntimeError("the picture could not be written")
    sys.stdout.flush()
    os._exit(0)  # the renderer may crash where it is taken down


if __name__ == "__main__":
    main(*sys.argv[1:])
