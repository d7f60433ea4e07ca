"""The backends of the ops, one module for each, loaded by name when an op is first called.

A module has four functions:

- ``has(op)``: whether it computes the op;
- ``unavailable(op, device)``: why it cannot do so on a device, None where it can;
- ``automatic(device)``: whether it is worth choosing on a device without being asked for by name;
- ``load(op)``: the module that holds the op's functions (see :class:`detr_fast.ops.dispatch.Backend`).
"""
