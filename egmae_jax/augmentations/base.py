"""Random augmentations by name, as `finetune.augment` lists them: 'rotate(15)', 'mixup(0.2)', ...

They follow torchvision's transforms of the same names and draw from the same distributions. Each
image has its own random key, so results depend neither on the number of devices nor on the other
images of a batch. An augmentation of your own is a frozen dataclass:

    @register("posterize")
    @dataclasses.dataclass(frozen=True)
    class Posterize(Augmentation):
        levels: int

        def apply(self, key, image):
            return jnp.round(image * (self.levels - 1)) / (self.levels - 1)
"""

import ast
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from egmae_jax.augmentations import image_ops
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.platform import for_cpu
from egmae_jax.core.registry import Registry

Interval = float | tuple[float, float]
AUGMENTATIONS: Registry[type["Augmentation"]] = Registry("augmentation")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An augmentation of single images; its fields are the arguments in the config.

    Raises:
        ValueError: an argument is out of range; the message completes the sentence "<name> ...".
    """

    p: float = dataclasses.field(default=1.0, kw_only=True)  # probability of being applied

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"has p={self.p}; it must be between 0 and 1")

    def apply(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Augments an image, float32 [H, W, 3 or 1] in [0, 1]; JAX traces it."""
        raise NotImplementedError


class Geometric(Augmentation):
    """A geometric augmentation. Consecutive ones are composed and resample an image only once."""

    def matrix(self, key: jax.Array, size: tuple[int, ...]) -> jax.Array:
        """Draws a matrix for `image_ops.affine`, float32 [3, 3].

        Args:
            key: random key.
            size: height and width of the image.
        """
        raise NotImplementedError


class Mixing(Augmentation):
    """An augmentation that mixes each image, and its label, with another one of the batch."""

    def mix(
        self, key: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes images float32 [B, H, W, C] and class probabilities float32 [B, num_classes].

        As in torchvision, all images of a batch share the random numbers, and the partner of an
        image is the one before it.
        """
        raise NotImplementedError


Class = TypeVar("Class", bound=type[Augmentation])


def register(name: str) -> Callable[[Class], Class]:
    """Registers the decorated class as an augmentation for `finetune.augment`.

    Raises:
        ValueError: an augmentation of this package has this name.
    """
    return cast(Callable[[Class], Class], AUGMENTATIONS.register(name))


def names() -> tuple[str, ...]:
    """Returns the names of all augmentations."""
    return AUGMENTATIONS.names()


def parse_one(call: str) -> Augmentation:
    """Returns the augmentation that a text such as 'rotate(15, p=0.5)' describes.

    Raises:
        ConfigError: the text is not a call, the name is unknown, or an argument is wrong.
    """
    try:
        node = ast.parse(call.strip(), mode="eval").body
        if isinstance(node, ast.Name):  # 'vertical_flip', without arguments
            node = ast.Call(node, [], [])
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        name = node.func.id
        values = [ast.literal_eval(argument) for argument in node.args]
        named = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
    except (SyntaxError, ValueError):
        raise ConfigError(
            f"{call!r} is not a name with numbers in brackets, such as 'rotate(15, p=0.5)'."
        ) from None
    cls = AUGMENTATIONS.get(name)
    try:
        return cls(*values, **named)
    except ValueError as error:
        raise ConfigError(f"{call!r} {error}.") from None
    except TypeError:
        arguments = ", ".join(
            field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default}"
            for field in sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only))
        )
        raise ConfigError(f"{call!r} does not fit {name}({arguments}).") from None


def parse(calls: Sequence[str]) -> tuple[Augmentation, ...]:
    """Returns the augmentations that texts describe; those that mix images must be the last.

    Raises:
        ConfigError: a text is wrong, see `parse_one`, or another augmentation follows a mixing one.
    """
    parsed = tuple(map(parse_one, calls))
    are_mixing = [isinstance(each, Mixing) for each in parsed]
    if are_mixing != sorted(are_mixing):
        first = calls[are_mixing.index(True)]
        raise ConfigError(f"{first!r} mixes images; it must stand after those of single images.")
    return parsed


def apply(key: jax.Array, images: jax.Array, augmentations: Sequence[Augmentation]) -> jax.Array:
    """Applies all augmentations of single images, in their order, to each image of a batch.

    Args:
        key: random key of the batch.
        images: float32 [B, H, W, 3 or 1] in [0, 1].
        augmentations: result of `parse`; those that mix images are left out.
    """
    single = tuple(each for each in augmentations if not isinstance(each, Mixing))
    if not single:
        return images
    keys = jax.random.split(key, len(images))
    function = functools.partial(_apply_to_one, augmentations=single)
    if for_cpu():  # computes only the branches that are drawn
        return jax.lax.map(lambda x: function(*x), (keys, images))
    return jax.vmap(function)(keys, images)


def _apply_to_one(
    key: jax.Array, image: jax.Array, augmentations: Sequence[Augmentation]
) -> jax.Array:
    keyed = [(jax.random.fold_in(key, i), each) for i, each in enumerate(augmentations)]
    groups = itertools.groupby(keyed, lambda pair: isinstance(pair[1], Geometric))
    for is_geometric, group in groups:
        if is_geometric:
            matrix = jnp.eye(3)
            for each_key, each in group:
                drawn = cast(Geometric, each).matrix(each_key, image.shape[:2])
                matrix = matrix @ jnp.where(is_applied(each_key, each.p), drawn, jnp.eye(3))
            image = image_ops.affine(image, matrix)
            continue
        for each_key, each in group:
            draw = functools.partial(each.apply, each_key)
            if each.p < 1:
                applied = is_applied(each_key, each.p)
                image = jax.lax.cond(applied, draw, lambda image: image, image)
            else:
                image = draw(image)
    return image


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    augmentations: Sequence[Augmentation],
) -> tuple[jax.Array, jax.Array]:
    """Mixes the images and targets of a batch by one of the mixing augmentations, drawn at random.

    Args:
        key: random key of the batch.
        images: float32 [B, H, W, C].
        targets: class probabilities float32 [B, num_classes].
        augmentations: result of `parse`; those of single images are left out.
    """
    mixing = [each for each in augmentations if isinstance(each, Mixing)]
    if not mixing:
        return images, targets
    choice_key, key = jax.random.split(key)
    choice = jax.random.randint(choice_key, (), 0, len(mixing))
    return jax.lax.switch(choice, [each.mix for each in mixing], key, images, targets)


def is_applied(key: jax.Array, p: float) -> jax.Array:
    """Draws whether an augmentation is applied; its other draws may use the same key."""
    return jax.random.bernoulli(jax.random.fold_in(key, 2**31 - 1), float(p))


def interval(
    name: str, value: Any, centre: float, low: float = 0.0, high: float = math.inf
) -> tuple[float, float]:
    """Returns the interval that an argument describes.

    Args:
        name: name of the argument.
        value: (lowest, highest), or a number x for centre - x to centre + x.
        centre: the number that changes nothing.
        low: smallest number allowed.
        high: largest number allowed.

    Raises:
        ValueError: the value is neither, or exceeds the limits.
    """
    pair = value
    if is_number(value) and value >= 0:
        lowest = centre - value
        # A factor has no negative values; shifts beyond their limits are refused.
        pair = (max(lowest, low) if low == 0 else lowest, centre + value)
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and all(map(is_number, pair))
    if not is_pair or not low <= pair[0] <= pair[1] <= high:
        limits = f" between {low:g} and {high:g}" if math.isfinite(low + high) else ""
        raise ValueError(
            f"has {name}={value!r}; it must be a number of at least 0 or (lowest, highest){limits}"
        )
    return float(pair[0]), float(pair[1])


def is_number(value: Any) -> bool:
    """Whether an argument is a finite int or float."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def uniform(key: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    """Draws a number uniformly from an interval."""
    return jax.random.uniform(key, minval=bounds[0], maxval=bounds[1])
