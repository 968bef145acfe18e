"""A pretended GPU: a second place for tensors, so that a machine with only a CPU shows the errors of two places.

    from tests import elsewhere; elsewhere.pretend()     before the first model is made, in the gpu profile; there is no way back in this process

From then on the profile's device, and that of every trainer, is "elsewhere". A tensor that is made there or moved there keeps
its numbers in a plain tensor that nobody else sees, but is on elsewhere:0. What a GPU refuses is refused: operations on tensors
of both places, `.numpy()` and what stands on it (NumPy, matplotlib, pandas, sklearn), a generator of the other place. All of it
happens below autograd (`__torch_dispatch__`), so models, optimizers and trainers are those that a GPU would run.

What it cannot see: memory, speed, rounding, bf16 and fp16, a GPU's random numbers, operations that torch has for the CPU only,
kernels that are not torch's, and what asks for "cuda" by name. A single number on the CPU passes everywhere, on a GPU nearly
everywhere. What it cannot do, though a GPU can, raises NotImplementedError: new shapes in place, torch.tensor of a list of tensors.
"""

import dataclasses
import os

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from helpers import course

NAME = "elsewhere"
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}  # they carry numbers from one place to the other
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}  # indices may stay on the CPU
plain_data = torch.Tensor.data


class Elsewhere(torch.Tensor):
    """A tensor elsewhere. `here`: the plain tensor that has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=f"{NAME}:0")

    def __init__(self, here):
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, operation, kinds, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})

    def numpy(self, **options):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def __array__(self, *options):
        return self.numpy()

    # What torch leaves out for subclasses:
    def __repr__(self):
        return f"{self.here!r} on {self.device}"

    def __format__(self, how):
        return format(self.here, how)

    def tolist(self):
        return self.here.tolist()

    def untyped_storage(self):  # by which `save_pretrained` finds tied weights
        return self.here.untyped_storage()


class Place(TorchDispatchMode):
    """Sees every operation, also those that make a tensor from nothing."""

    def __torch_dispatch__(self, operation, kinds, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args, kwargs):
    """One of torch's operations, on the tensors that have the numbers; the results are where a GPU's would be."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = {id(tensor.here): tensor for tensor in reversed(tensors) if isinstance(tensor, Elsewhere)}
    if there and operation not in CROSSING:
        refuse_two_places(operation, args, tensors)
    device = kwargs.get("device")
    leads_there = bool(there) if device is None else torch.device(device).type == NAME
    if leads_there and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if device is not None:
        kwargs = kwargs | dict(device="cpu")
    args, kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.here, (args, kwargs))
    result = operation(*args, **kwargs)
    if any(tensor.shape != tensor.here.shape for tensor in there.values()):
        raise NotImplementedError(f"{operation} gives a tensor another shape in place, which tests/elsewhere.py cannot show")
    if not leads_there:
        return result
    return tree_map_only(torch.Tensor, lambda tensor: there[id(tensor)] if id(tensor) in there else Elsewhere(tensor), result)  # in place: what was given


def refuse_two_places(operation, args, tensors):
    """Raise as CUDA does. Only single numbers (tensors without dimensions) that are read, and indices, may be on the CPU."""
    first = args[0] if isinstance(args[0], torch.Tensor) else None
    if operation in INDEXING and isinstance(first, Elsewhere):
        tensors = [value for value in args[2:3] if isinstance(value, torch.Tensor)]
    for tensor in tensors:
        if not isinstance(tensor, Elsewhere) and (tensor.ndim or (tensor is first and operation._schema.is_mutable)):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! (in {operation})")


def set_data(old, new):
    """`old.data = new`, by which `Module.to` moves a model."""
    if not isinstance(old, Elsewhere) and not isinstance(new, Elsewhere):
        plain_data.__set__(old, new)
    elif type(old) is type(new) and old.shape == new.shape and old.dtype == new.dtype:
        old.here = new.here
    else:
        torch.utils.swap_tensors(old, torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new.detach())


def may_set_data(input: torch.Tensor, from_: torch.Tensor) -> bool:
    """In place of torch's own: `Module.to` may set the data of weights, so that tied ones stay tied."""
    return True


def pretend():
    """From now on this process has another place for tensors, and the gpu profile computes there, trainers and all."""
    _setup_privateuseone_for_python_backend(NAME)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=NAME) makes a tensor here and moves it
    torch._has_compatible_shallow_copy_type = may_set_data
    torch.Tensor.data = property(lambda tensor: tensor.detach() if isinstance(tensor, Elsewhere) else plain_data.__get__(tensor), set_data)
    torch.serialization.add_safe_globals([Elsewhere])  # an optimizer's state is loaded with the types that torch knows only
    Place().__enter__()
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME
    hardware = dict(bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False)
    course._active = dataclasses.replace(course.PROFILES["gpu"](), device=NAME, hardware=hardware)
