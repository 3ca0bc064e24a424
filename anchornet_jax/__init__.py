"""AnchorNet in JAX: find the patches that carry an image's class, stop when sure.

Papers: *Localizing Semantic Patches for Accelerating Image Classification* (2022)
and *Localizing Multi-scale Semantic Patches for Image Classification* (2020).

Axis letters, in docstrings, comments and einsums:

    B images      N classes     C channels    H, W height and width in pixels
    G grid side   L locations   K patches of an image   P patch side in pixels
    S stride in pixels   T steps of the sequence   E exits   D devices

Order is always (y, x), (height, width), NHWC. All patches of a branch have one size,
so a patch is its top-left corner (y, x): int32 pixels. Costs are multiply-adds
(`macs`), which both papers call FLOPs.

Importing this package has no side effects; import its modules by name.
"""

__version__ = "0.1.0"
