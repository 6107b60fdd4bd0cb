"""What ranks do in tests of checkpoints: train and save in some modes, load what others saved and train on."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from shampoo_optim import Shampoo
from tests.distributed.sharding import LARGE, MANY, give, model_for, optimizer_for, sharded_as, weights
from tests.optim.support import grads_for, parameters
from tests.support import Tensors

# saved after the first roots; a step that uses them, and one that makes others of the factors
SAVED, STEPS = 2, 4
CADENCE = MANY | {"staggered": False, "precondition_frequency": 2}
OPTIONS = {"flatten": StateDictOptions(flatten_optimizer_state_dict=True), "nested": StateDictOptions()}


def walk(module: nn.Module, optimizer: Shampoo, start: int, stop: int) -> None:
    """The steps from `start` to `stop`."""
    for grads in grads_for(parameters(shapes=LARGE), STEPS)[start:stop]:
        give(module, grads)
        optimizer.step()
    optimizer.zero_grad()


def made(mode: str) -> tuple[nn.Module, Shampoo]:
    module = model_for(mode, shapes=LARGE)
    return module, optimizer_for(mode, module, CADENCE)


def gathered(module: nn.Module, optimizer: Shampoo, form: str) -> dict[str, Any]:
    return {"model": module.state_dict(), "optimizer": get_optimizer_state_dict(module, optimizer, options=OPTIONS[form])}


def save(folder: Path, modes: tuple[str, ...], form: str = "nested") -> dict[str, Tensors]:
    """Saved after step `SAVED`, as `folder/mode`; the parameters after the last step, by mode."""
    found = {}
    for mode in modes:
        module, optimizer = made(mode)
        walk(module, optimizer, 0, SAVED)
        dcp.save(gathered(module, optimizer, form), checkpoint_id=folder / mode)
        walk(module, optimizer, SAVED, STEPS)
        found[mode] = weights(module)
    return found


def load(folder: Path, pairs: tuple[tuple[str, str], ...], form: str = "nested") -> dict[tuple[str, str], Tensors]:
    """For each mode and saved run: the parameters after the last step of a run that goes on from there."""
    found = {}
    for mode, saved in pairs:
        module, optimizer = made(mode)
        with torch.no_grad():
            for param in module.parameters():
                param.zero_()
        state = gathered(module, optimizer, form)
        dcp.load(state, checkpoint_id=folder / saved)
        module.load_state_dict(state["model"])
        set_optimizer_state_dict(module, optimizer, state["optimizer"], options=OPTIONS[form])
        walk(module, optimizer, SAVED, STEPS)
        found[mode, saved] = weights(module)
    return found


def whole(modes: tuple[str, ...], path: Path) -> dict[str, Any]:
    """Plain checkpoints: of one process loaded in each mode, and full ones of each mode."""
    found: dict[str, Any] = {}
    checkpoint = torch.load(path, weights_only=True)
    full = StateDictOptions(full_state_dict=True)
    for mode in modes:
        module, optimizer = made(mode)
        walk(module, optimizer, 0, 1)
        optimizer.load_state_dict(checkpoint["optimizer"])
        with torch.no_grad():
            for name, param in module.named_parameters():
                param.copy_(sharded_as(param, checkpoint["model"][name]))
        state = get_optimizer_state_dict(module, optimizer, options=full)["state"]
        found[mode, "full"] = {f"{name}.{key}": value.clone() for name, held in state.items() for key, value in held.items()}
        walk(module, optimizer, SAVED, STEPS)
        found[mode, "params"] = weights(module)
    return found


def save_and_load(folder: Path) -> dict[Any, Tensors]:
    """Sharded state with flattened names, and the state of local shards."""
    saved = save(folder, ("local",)) | save(folder, ("sharded",), "flatten")
    return {**saved, **load(folder, (("local", "local"),)), **load(folder, (("sharded", "sharded"),), "flatten")}


def refused(folder: Path) -> dict[str, str]:
    """What loading into local shards says to the state of another number of shards, and to the state of one process."""
    found = {}
    module, optimizer = made("local")
    try:
        dcp.load(gathered(module, optimizer, "nested"), checkpoint_id=folder / "local")
    except dcp.CheckpointException as error:
        found["torch"] = str(error)
    single, other = made("single")
    walk(single, other, 0, 1)
    try:
        optimizer.load_state_dict(other.state_dict())
    except ValueError as error:
        found["ours"] = str(error)
    return found
