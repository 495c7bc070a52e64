"""The seam behind which matrix kernels may change: weight in, callable out. Nothing else holds the weight.

Shapes: R rows, N outputs, K inputs. A weight comes as Hugging Face stores it, N x K.
"""

from agent.engine.linear.linear import Linear

__all__ = ["Linear"]
