"""Multiply-adds and parameters of a JAX function, counted from its traced program.

Both papers write "FLOPs" and mean multiply-adds of convolutions and matrix products:
counted so, AnchorNet has the 60 M and ResNet-50 the 4,089 M of 2022, Sec. 3.2. Padding
is counted as PyTorch's counters do. Nothing is computed: shapes are enough.
"""

import math
from collections.abc import Callable

import jax


def macs(function: Callable, *args, **kwargs) -> int:
    """Count the multiply-adds of `function(*args, **kwargs)`.

    Args:
      function: any traceable function.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The sum over the program. Of a conditional the costliest branch counts, of forms
      for several platforms (`lax.platform_dependent`) the last, the default; a scan's
      body counts once per step, the body of a `while` loop once.
    """
    return count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def model_macs(model, height: int, width: int | None = None) -> int:
    """Count the multiply-adds of a network for one image of the given size."""
    images = jax.ShapeDtypeStruct((1, height, width or height, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return macs(lambda v, x: model.apply(v, x)[0], variables, images)


def parameters(variables) -> int:
    """Count the entries of `variables["params"]`, or of any tree of arrays."""
    tree = variables.get("params", variables)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count(jaxpr) -> int:
    """Count the multiply-adds of a traced program, `jax.make_jaxpr(…)(…).jaxpr`."""
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(
            lhs[axis] for axis in contracted
        )
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * (
            math.prod(kernel) // features
        )
    inner = [count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        # A platform's own form may multiply more to be faster: on CPU the grouped
        # convolution with zeros between its groups.
        return inner[-1] if params.get("branches_platforms") else max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(value):
    """Yield the programs inside an equation's parameter, whatever wraps them."""
    for item in value if isinstance(value, (tuple, list)) else (value,):
        item = getattr(item, "jaxpr", item)
        if hasattr(item, "eqns"):
            yield item
