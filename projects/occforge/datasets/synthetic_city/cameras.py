"""Pictures: rays through the pixels, textures, sun with shadows, sky, haze, and the faults of a camera."""

import cv2
import numpy as np
import torch

from .rig import Camera, quaternion_matrix
from .textures import LEVELS, SIZE, atlas
from .world import Moment, World

_CHUNK = 32768  # pixels shaded at once: what is computed in between stays in the cache


def camera_pose(camera: Camera, ego: np.ndarray) -> np.ndarray:
    """(4, 4) camera to scene."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = quaternion_matrix(camera.rotation), camera.translation
    return ego @ pose


def scaled_intrinsic(camera: Camera, rig_size, image_size) -> np.ndarray:
    """(3, 3) intrinsics for another image size; pixel centres at integer + 0.5 keep their share of the image."""
    k = camera.intrinsic.copy()
    k[0] *= image_size[0] / rig_size[0]
    k[1] *= image_size[1] / rig_size[1]
    return k


def pixel_rays(intrinsic, pose, pixels) -> np.ndarray:
    """Directions in the scene's frame through (N, 2) image points, scaled so that distance along them is depth."""
    y = (pixels[:, 1] - intrinsic[1, 2]) / intrinsic[1, 1]
    x = (pixels[:, 0] - intrinsic[0, 2] - intrinsic[0, 1] * y) / intrinsic[0, 0]
    r = pose[:3, :3]
    out = np.empty((len(pixels), 3))
    for k in range(3):
        out[:, k] = r[k, 0] * x + r[k, 1] * y + r[k, 2]
    return out


def depth_at(moment: Moment, intrinsic, pose, pixels):
    """Depth (N,) metres along the optical axis at image points, inf for the sky, and the primitive hit there."""
    rays = pixel_rays(intrinsic, pose, np.asarray(pixels, float))
    hits = moment.scene.cast(torch.from_numpy(pose[None, :3, 3].copy()), torch.from_numpy(rays))
    return hits.distance.numpy(), hits.primitive.numpy()


def render(world: World, moment: Moment, intrinsic, pose, image_size, rng, with_depth=False):
    """One picture.

    Returns:
        (h, w, 3) uint8 RGB; with ``with_depth`` also (h, w) float32 depth along the optical axis, inf for the sky.
    """
    w, h = image_size
    u, v = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    rays = pixel_rays(intrinsic, pose, np.stack([u.ravel(), v.ravel()], 1))
    length = np.sqrt((rays * rays).sum(1))
    origin = torch.from_numpy(pose[None, :3, 3].copy())
    hits = moment.scene.cast(origin, torch.from_numpy(rays))
    primitive, depth = hits.primitive.numpy(), hits.distance.numpy()
    image = np.empty((len(rays), 3), np.float32)
    sky = np.flatnonzero(primitive < 0)
    image[sky] = _sky(world, rays[sky], length[sky])
    seen = np.flatnonzero(primitive >= 0)
    for start in range(0, len(seen), _CHUNK):
        part = seen[start : start + _CHUNK]
        image[part] = _surfaces(world, moment, pose, rays, length, hits, part, float(intrinsic[0, 0]))
    picture = _develop(world, image.reshape(h, w, 3), rng)
    return (picture, depth.reshape(h, w).astype(np.float32)) if with_depth else picture


def _sky(world, rays, length):
    light, book = world.light, atlas()
    d = (rays / length[:, None]).astype(np.float32)
    up = np.clip(d[:, 2], 0, 1)
    blend = np.sqrt(up)[:, None]
    image = light.horizon_colour.astype(np.float32) * (1 - blend) + light.sky_colour.astype(np.float32) * blend
    high = np.flatnonzero(d[:, 2] > 0.01)
    if len(high):
        scale = 0.11 / (d[high, 2] + 0.12)
        material = np.full(len(high), book.index['meadow'], np.int32)
        mask, _ = book.sample(material, d[high, 0] * scale, d[high, 1] * scale, np.int32(2))
        cover = np.clip((mask - 0.75 + 0.7 * light.clouds) * 1.6, 0, 0.9)[:, None]
        image[high] += cover * (np.float32(0.92 - 0.25 * light.clouds) - image[high])
    glow = np.clip(d @ light.sun.astype(np.float32), 0, 1) ** 64
    image += (0.5 * (1 - light.clouds) * glow)[:, None] * light.sun_colour.astype(np.float32)
    return image


def _surfaces(world, moment, pose, rays, length, hits, seen, focal):
    light, book = world.light, atlas()
    primitive = hits.primitive.numpy()[seen]
    uv, normal = hits.uv.numpy()[seen], hits.normal.numpy()[seen]
    face = hits.face.numpy()[seen]
    depth = hits.distance.numpy()[seen]
    span = length[seen]
    row = world.surface_rows(primitive, uv)
    group = _GROUPS[face]
    cell = row * 3 + group
    material = world.material.ravel()[cell]
    repeat = world.repeat.reshape(-1, 2)[cell]
    turn = world.turn[row]
    u = (uv[:, 0] * turn[:, 0] + uv[:, 1] * turn[:, 1]) * repeat[:, 0]
    v = (uv[:, 1] * turn[:, 0] - uv[:, 0] * turn[:, 1]) * repeat[:, 1]
    view = (rays[seen] / span[:, None]).astype(np.float32)
    facing = np.abs(np.einsum('ij,ij->i', view, normal))
    # texels under a pixel; between its two axes on surfaces seen at a slant
    footprint = (depth * (1 / focal)).astype(np.float32) / np.sqrt(np.maximum(facing, 0.04))
    level = np.log2(np.maximum(footprint * np.maximum(repeat[:, 0], repeat[:, 1]) * SIZE, 1e-6))
    level = np.clip(np.rint(level - 0.2), 0, LEVELS - 1).astype(np.int32)
    mask, shade = book.sample(material, u, v, level)
    colour = world.colour[row]
    albedo = colour[:, 0] + mask[:, None] * (colour[:, 1] - colour[:, 0])
    ground = np.flatnonzero(primitive == len(world.owner))
    if len(ground):  # stains, tens of metres wide
        x, y = uv[ground, 0], uv[ground, 1]
        material_ground = np.full(len(ground), book.index['dirt'], np.int32)
        stain, _ = book.sample(material_ground, x * np.float32(1 / 31), y * np.float32(1 / 31), np.int32(1))
        shade[ground] *= 0.86 + 0.4 * stain
    albedo *= shade[:, None]

    sun = light.sun.astype(np.float32)
    lit = np.clip(normal @ sun, 0, 1)
    if light.clouds < 0.9:
        ask = np.flatnonzero(lit > 0)
        start = pose[None, :3, 3] + rays[seen[ask]] * depth[ask, None] + 0.012 * normal[ask]
        towards = np.broadcast_to(light.sun, start.shape).copy()
        shadow = moment.scene.occluded(torch.from_numpy(start), torch.from_numpy(towards), far=60.0, ground=False)
        lit[ask[shadow.numpy()]] = 0
    ambient = light.sky_colour.astype(np.float32) * 0.62 + 0.08
    radiance = lit[:, None] * light.sun_colour.astype(np.float32) + ambient * (0.62 + 0.38 * normal[:, 2:3])
    colour = albedo * radiance
    gloss = book.gloss[material] * mask
    shiny = np.flatnonzero(gloss > 0.05)
    if len(shiny):  # panes mirror the sky or the dark street
        up = view[shiny, 2] - 2 * np.einsum('ij,ij->i', view[shiny], normal[shiny]) * normal[shiny, 2]
        mirror = np.where(up[:, None] > 0, light.sky_colour, light.horizon_colour * 0.25).astype(np.float32)
        fresnel = gloss[shiny] * (0.25 + 0.75 * (1 - facing[shiny]) ** 2)
        colour[shiny] += fresnel[:, None] * (mirror - colour[shiny])
    haze = (1 - np.exp(-depth * span / light.visibility)).astype(np.float32)[:, None]
    colour += haze * (light.horizon_colour.astype(np.float32) - colour)
    return colour


_GROUPS = np.array([0, 0, 1, 1, 2, 2], np.int64)  # face -> ends, sides, top and bottom


def _develop(world, image, rng):
    h, w = image.shape[:2]
    light = world.light
    y, x = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    image *= (light.exposure * 0.72 * (1 - 0.16 * (x * x + y * y))).astype(np.float32)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), 0.45 * w / 800 + 0.1)
    np.maximum(image, 0, out=image)
    image = image / (1 + 0.22 * image)  # the shoulder of the film
    image = np.sqrt(image)  # close to the sRGB curve
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(light.noise)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
