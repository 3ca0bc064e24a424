"""Decoding: from an encoded image to uint8 pixels, for use inside a TensorFlow pipeline.

Grey and CMYK images become RGB. An EXIF orientation is not applied, as in TFDS and
torchvision: published weights are trained without it, and boxes count stored pixels.
"""

import tensorflow as tf

RATIO = (3 / 4, 4 / 3)  # of the random part's sides
LUMA = (0.299, 0.587, 0.114)
DCT = "INTEGER_ACCURATE"  # the pixels that PIL decodes, hence torchvision


def whole(encoded):
    """Decode an image to uint8 [H, W, 3]."""
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method=DCT),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))


def random_part(encoded, seed, smallest_area: float = 0.08):
    """Decode a random part, uint8 [h, w, 3], and of a JPEG nothing else.

    Args:
      encoded: the file's bytes.
      seed: int64 [2]; the part is a function of it and of the image's sides.
      smallest_area: of the part, as a share of the image's.

    A JPEG that is cut off fails only if the part reaches beyond the cut.
    """

    def draw(shape):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            seed,
            min_object_covered=0,
            aspect_ratio_range=RATIO,
            area_range=(smallest_area, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], extent[:2]], 0)  # top, left, height, width

    def jpeg():
        window = draw(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method=DCT)

    def other():
        image = whole(encoded)
        window = draw(tf.shape(image))
        return tf.slice(
            image, tf.concat([window[:2], [0]], 0), tf.concat([window[2:], [3]], 0)
        )

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image, (None, None, 3))


def or_black(function, encoded, size: int):
    """Return `function(encoded)` and True, or a black image and False if it fails.

    TensorFlow can go on after a failure in a data set of its own only, which costs
    up to a third more processor time per image.
    """
    black = tf.zeros((size, size, 3), tf.uint8)
    return (
        tf.data.Dataset.from_tensors(encoded)
        .map(lambda encoded: (function(encoded), True))
        .ignore_errors()
        .concatenate(tf.data.Dataset.from_tensors((black, False)))
        .take(1)
        .get_single_element()
    )


def centre(image, size: int, resize: int, box=None):
    """Resize the short side, cut out the centre: uint8 [size, size, 3].

    Args:
      image: uint8 [H, W, 3].
      size: pixels.
      resize: pixels of the short side before the cut; 0 cuts only.
      box: float [4], shares of the sides as (top, left, bottom, right), or None.

    Returns:
      The image, and the box in its pixels.
    """
    if resize:
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        sides = tf.round(sides * resize / tf.reduce_min(sides))
        image = scaled(image, tf.cast(sides, tf.int32))
    sides = tf.shape(image)[:2]
    tf.debugging.assert_greater_equal(
        sides, size, f"an image is smaller than `image_size`, {size}; set `resize`"
    )
    corner = (sides - size) // 2
    image = image[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    image = tf.ensure_shape(image, (size, size, 3))
    if box is not None:
        box = box * tf.cast(tf.tile(sides, [2]), box.dtype)
        box = tf.clip_by_value(
            box - tf.cast(tf.tile(corner, [2]), box.dtype), 0.0, float(size)
        )
    return image, box


def squeezed(image, size: int, box=None):
    """Bring the whole image to uint8 [size, size, 3], whatever its form.

    Args:
      image: uint8 [H, W, 3].
      size: pixels.
      box: float [4], shares of the sides as (top, left, bottom, right), or None.

    Returns:
      The image, and the box in its pixels.
    """
    return scaled(image, (size, size)), None if box is None else box * float(size)


def disturbed(image, seed, turns: bool, colour: float, noise: float):
    """Return a square image as other light, another camera and another side show it.

    Args:
      image: uint8 [S, S, 3].
      seed: int64 [2].
      turns: turn it by a random number of quarters.
      colour: change brightness, then contrast, then saturation by factors from 1 -
        `colour` to 1 + `colour`.
      noise: largest deviation of the normal noise, of 255.
    """
    seeds = [tf.random.fold_in(seed, number) for number in range(1, 5)]
    if turns:
        quarters = tf.random.stateless_uniform((), seeds[0], 0, 4, tf.int32)
        image = tf.ensure_shape(tf.image.rot90(image, quarters), image.shape)
    if not colour and not noise:
        return image
    pixels = tf.cast(image, tf.float32)
    if colour:
        light, contrast, saturation = tf.unstack(
            tf.random.stateless_uniform((3,), seeds[1], 1 - colour, 1 + colour)
        )
        pixels = tf.clip_by_value(light * pixels, 0, 255)
        mean = tf.reduce_mean(tf.reduce_sum(pixels * LUMA, -1))
        pixels = tf.clip_by_value(mean + contrast * (pixels - mean), 0, 255)
        grey = tf.reduce_sum(pixels * LUMA, -1, keepdims=True)
        pixels = grey + saturation * (pixels - grey)
    if noise:
        deviation = tf.random.stateless_uniform((), seeds[2], 0, noise)
        pixels += tf.random.stateless_normal(tf.shape(image), seeds[3], 0, deviation)
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)


def scaled(image, sides):
    """Resize to the given sides, bilinear, without aliasing."""
    image = tf.image.resize(image, sides, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
