"""The things in our scenes: each class is a function from local coordinates to an ordered list of painted parts.

A part is (signed distance, role). Roles: `body` takes the object's colour and pattern, `trim` the colour darkened,
`dark`, `pale` and `gold` are fixed paints. Local coordinates span about [-1, 1] in both directions, v down.
"""

from collections.abc import Callable

from fewbayes.world.draw import Array, box, circle, convex, ellipse, minus, ring, segment, union

Part = tuple[Array, str]


def mug(u: Array, v: Array) -> list[Part]:
    handle = ring(ellipse(u, v, 0.52, 0.0, 0.32, 0.36), 0.09)
    return [
        (handle, "trim"),
        (box(u, v, -0.05, 0.05, 0.58, 0.72, 0.12), "body"),
        (ellipse(u, v, -0.05, -0.62, 0.5, 0.12), "dark"),
    ]


def ball(u: Array, v: Array) -> list[Part]:
    return [(circle(u, v, 0.0, 0.05, 0.8), "body"), (ring(ellipse(u, v, 0.0, 0.05, 0.28, 0.78), 0.035), "dark")]


def crate(u: Array, v: Array) -> list[Part]:
    lid = convex(u, v, (-0.75, -0.35), (-0.4, -0.75), (0.95, -0.75), (0.6, -0.35))
    side = convex(u, v, (0.6, -0.35), (0.95, -0.75), (0.95, 0.4), (0.6, 0.8))
    return [(lid, "pale"), (side, "trim"), (box(u, v, -0.075, 0.22, 0.675, 0.58), "body")]


def bottle(u: Array, v: Array) -> list[Part]:
    neck = box(u, v, 0.0, -0.62, 0.14, 0.3, 0.03)
    body = union(box(u, v, 0.0, 0.3, 0.4, 0.62, 0.16), circle(u, v, 0.0, -0.2, 0.3))
    return [(neck, "trim"), (body, "body"), (box(u, v, 0.0, -0.88, 0.18, 0.1, 0.03), "dark")]


def boot(u: Array, v: Array) -> list[Part]:
    leg = box(u, v, -0.28, -0.25, 0.34, 0.65, 0.08)
    foot = box(u, v, 0.1, 0.45, 0.72, 0.27, 0.24)
    return [
        (union(leg, foot), "body"),
        (box(u, v, 0.12, 0.76, 0.76, 0.1, 0.05), "dark"),
        (box(u, v, -0.28, -0.86, 0.38, 0.09, 0.04), "pale"),
    ]


def car(u: Array, v: Array) -> list[Part]:
    cabin = convex(u, v, (-0.6, 0.0), (-0.35, -0.5), (0.3, -0.5), (0.6, 0.0))
    window = convex(u, v, (-0.45, -0.05), (-0.28, -0.4), (0.24, -0.4), (0.45, -0.05))
    wheels = union(circle(u, v, -0.52, 0.42, 0.24), circle(u, v, 0.52, 0.42, 0.24))
    hubs = union(circle(u, v, -0.52, 0.42, 0.1), circle(u, v, 0.52, 0.42, 0.1))
    return [
        (union(cabin, box(u, v, 0.0, 0.16, 0.95, 0.28, 0.14)), "body"),
        (window, "pale"),
        (wheels, "dark"),
        (hubs, "pale"),
    ]


def clock(u: Array, v: Array) -> list[Part]:
    bells = union(circle(u, v, -0.48, -0.66, 0.24), circle(u, v, 0.48, -0.66, 0.24))
    legs = union(segment(u, v, (-0.4, 0.6), (-0.6, 0.9), 0.08), segment(u, v, (0.4, 0.6), (0.6, 0.9), 0.08))
    hands = union(segment(u, v, (0, 0), (0, -0.34), 0.05), segment(u, v, (0, 0), (0.26, 0.12), 0.05))
    return [
        (bells, "gold"),
        (legs, "dark"),
        (circle(u, v, 0, 0, 0.76), "body"),
        (circle(u, v, 0, 0, 0.47), "pale"),
        (hands, "dark"),
    ]


def lamp(u: Array, v: Array) -> list[Part]:
    shade = convex(u, v, (-0.75, 0.05), (-0.38, -0.85), (0.38, -0.85), (0.75, 0.05))
    return [
        (box(u, v, 0.0, 0.4, 0.09, 0.5), "gold"),
        (ellipse(u, v, 0.0, 0.82, 0.48, 0.14), "dark"),
        (shade, "body"),
    ]


def chair(u: Array, v: Array) -> list[Part]:
    legs = union(box(u, v, -0.5, 0.6, 0.08, 0.38), box(u, v, 0.5, 0.6, 0.08, 0.38), box(u, v, -0.22, 0.5, 0.06, 0.3))
    back = minus(box(u, v, -0.05, -0.42, 0.55, 0.52, 0.1), box(u, v, -0.05, -0.1, 0.38, 0.09, 0.04))
    return [(legs, "dark"), (back, "body"), (box(u, v, 0.0, 0.2, 0.66, 0.16, 0.08), "trim")]


def umbrella(u: Array, v: Array) -> list[Part]:
    handle = union(box(u, v, 0.0, 0.3, 0.045, 0.55), ring(circle(u, v, 0.14, 0.8, 0.14), 0.05))
    dome = minus(circle(u, v, 0.0, 0.0, 0.92), box(u, v, 0.0, 0.6, 2.0, 0.6))
    scallops = union(*(circle(u, v, c, 0.05, 0.2) for c in (-0.68, -0.23, 0.23, 0.68)))
    return [(handle, "dark"), (minus(dome, scallops), "body")]


def teapot(u: Array, v: Array) -> list[Part]:
    spout = segment(u, v, (0.5, 0.25), (0.92, -0.3), 0.12)
    return [
        (ring(ellipse(u, v, -0.62, 0.1, 0.28, 0.34), 0.08), "trim"),
        (spout, "trim"),
        (ellipse(u, v, 0.0, 0.2, 0.66, 0.56), "body"),
        (ellipse(u, v, 0.0, -0.34, 0.34, 0.12), "trim"),
        (circle(u, v, 0.0, -0.5, 0.11), "gold"),
    ]


def backpack(u: Array, v: Array) -> list[Part]:
    return [
        (ring(circle(u, v, 0.0, -0.78, 0.16), 0.05), "dark"),
        (union(box(u, v, -0.66, 0.25, 0.16, 0.42, 0.12), box(u, v, 0.66, 0.25, 0.16, 0.42, 0.12)), "trim"),
        (box(u, v, 0.0, 0.05, 0.6, 0.82, 0.34), "body"),
        (box(u, v, 0.0, 0.42, 0.42, 0.3, 0.1), "trim"),
        (box(u, v, 0.0, 0.2, 0.42, 0.035), "gold"),
    ]


def _eyes(u: Array, v: Array, left: tuple[float, float], right: tuple[float, float], radius: float) -> list[Part]:
    whites = union(circle(u, v, *left, radius), circle(u, v, *right, radius))
    pupils = union(circle(u, v, *left, radius * 0.55), circle(u, v, *right, radius * 0.55))
    return [(whites, "pale"), (pupils, "dark")]


def cat(u: Array, v: Array) -> list[Part]:
    ears = union(
        convex(u, v, (-0.52, -0.3), (-0.5, -0.95), (-0.08, -0.6)),
        convex(u, v, (0.08, -0.6), (0.5, -0.95), (0.52, -0.3)),
    )
    tail = segment(u, v, (0.45, 0.75), (0.88, 0.15), 0.1)
    nose = convex(u, v, (0.0, -0.12), (-0.08, -0.22), (0.08, -0.22))
    return [
        (tail, "trim"),
        (ellipse(u, v, 0.0, 0.5, 0.56, 0.48), "body"),
        (ears, "trim"),
        (ellipse(u, v, 0.0, -0.28, 0.54, 0.44), "body"),
        *_eyes(u, v, (-0.22, -0.38), (0.22, -0.38), 0.13),
        (nose, "gold"),
    ]


def fish(u: Array, v: Array) -> list[Part]:
    tail = convex(u, v, (-0.5, 0.0), (-0.98, -0.5), (-0.98, 0.5))
    fins = union(
        convex(u, v, (-0.25, -0.35), (0.1, -0.8), (0.3, -0.35)), convex(u, v, (-0.1, 0.75), (-0.2, 0.35), (0.2, 0.35))
    )
    return [
        (tail, "trim"),
        (fins, "trim"),
        (ellipse(u, v, 0.12, 0.0, 0.78, 0.48), "body"),
        (circle(u, v, 0.55, -0.12, 0.13), "pale"),
        (circle(u, v, 0.57, -0.12, 0.07), "dark"),
    ]


def bird(u: Array, v: Array) -> list[Part]:
    legs = union(segment(u, v, (-0.1, 0.55), (-0.12, 0.92), 0.04), segment(u, v, (0.12, 0.55), (0.14, 0.92), 0.04))
    tail = convex(u, v, (-0.45, 0.15), (-1.0, -0.22), (-0.9, 0.3))
    return [
        (legs, "gold"),
        (tail, "trim"),
        (union(ellipse(u, v, 0.0, 0.2, 0.6, 0.42), circle(u, v, 0.42, -0.38, 0.34)), "body"),
        (convex(u, v, (0.7, -0.46), (1.0, -0.32), (0.7, -0.24)), "gold"),
        (ellipse(u, v, -0.12, 0.2, 0.36, 0.2), "trim"),
        (circle(u, v, 0.5, -0.44, 0.08), "dark"),
    ]


def turtle(u: Array, v: Array) -> list[Part]:
    legs = union(ellipse(u, v, -0.48, 0.52, 0.16, 0.26), ellipse(u, v, 0.38, 0.52, 0.16, 0.26))
    shell = minus(ellipse(u, v, -0.08, 0.35, 0.74, 0.82), box(u, v, 0.0, 1.0, 2.0, 0.62))
    return [
        (legs, "olive"),
        (segment(u, v, (0.5, 0.3), (0.78, 0.02), 0.19), "olive"),
        (shell, "body"),
        (box(u, v, -0.08, 0.4, 0.78, 0.07, 0.05), "trim"),
        (circle(u, v, 0.84, -0.04, 0.06), "dark"),
    ]


OBJECTS: dict[str, Callable[[Array, Array], list[Part]]] = {
    "mug": mug,
    "ball": ball,
    "box": crate,
    "bottle": bottle,
    "boot": boot,
    "car": car,
    "clock": clock,
    "lamp": lamp,
    "chair": chair,
    "umbrella": umbrella,
    "teapot": teapot,
    "backpack": backpack,
    "cat": cat,
    "fish": fish,
    "bird": bird,
    "turtle": turtle,
}
LIVE = ("cat", "fish", "bird", "turtle")
