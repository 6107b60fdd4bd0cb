"""Optimizers that are broken on purpose, each in one respect: what the checks of the contract are for."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch.optim import Optimizer

from shampoo_optim import Shampoo

Step = Callable[..., Any]
STEP: Step = vars(Shampoo.step)["__wrapped__"]  # without the hooks, which a subclass has again


def broken(name: str, **members: Any) -> type[Shampoo]:
    """Shampoo with some members replaced; a member of this module, so that it can be pickled."""
    kind = type(name, (Shampoo,), members | {"__module__": __name__})
    globals()[name] = kind
    return kind


def stepping(before: Callable[[Any], object] = lambda o: None, after: Callable[[Any], object] = lambda o: None) -> Step:
    """A step with something wrong done around it."""

    def step(self: Any, closure: Any = None) -> Any:
        before(self)
        loss = STEP(self, closure) if closure else STEP(self)
        with torch.no_grad():
            after(self)
        return loss

    return step


def every(optimizer: Optimizer, action: Callable[[Any], object]) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            action(p)


def base(self: Any, state_dict: Any) -> None:
    Optimizer.load_state_dict(self, state_dict)


def fill_missing(self: Any) -> None:
    every(self, lambda p: setattr(p, "grad", torch.zeros_like(p) if p.grad is None else p.grad))


def turns_waves(self: Any) -> None:
    every(self, lambda p: p.is_complex() and p.copy_(p.conj().resolve_conj()))


def scaled(factor: float) -> Callable[[Any], None]:
    return lambda o: every(o, lambda p: p.grad is not None and p.grad.mul_(factor))


def with_init(**forced: Any) -> Step:
    def init(self: Any, params: Any, lr: Any = None, **options: Any) -> None:
        forced_lr = forced.get("lr", lr)
        Shampoo.__init__(self, params, forced_lr, **{**options, **{k: v for k, v in forced.items() if k != "lr"}})

    return init


def lax_init(self: Any, params: Any, lr: Any = None, **options: Any) -> None:
    """Whatever is wrong is silently replaced."""
    try:
        Shampoo.__init__(self, params, lr, **options)
    except (TypeError, ValueError):
        Shampoo.__init__(self, [torch.nn.Parameter(torch.ones(1))])


def init_from_params(self: Any, params: Any, lr: Any = None, **options: Any) -> None:
    """Remembers the parameters of the constructor."""
    Shampoo.__init__(self, params, lr, **options)
    self._mine = [list(group["params"]) for group in self.param_groups]


def with_mine(self: Any) -> None:
    for group, mine in zip(self.param_groups, self.__dict__.get("_mine", []), strict=False):
        group["params"] = mine


def plain_floats(self: Any) -> None:
    for group in self.param_groups:
        group["lr"] = float(group["lr"])


def remembered(name: str) -> Callable[[Any], None]:
    """The first value of an option is used forever."""

    def before(self: Any) -> None:
        for number, group in enumerate(self.param_groups):
            group[name] = self.__dict__.setdefault("_first", {}).setdefault((number, name), deepcopy(group[name]))

    return before


def closure_twice(self: Any, closure: Any = None) -> Any:
    if closure is not None:
        closure()
    return STEP(self, closure)


def reads_a_value(self: Any) -> None:
    every(self, lambda p: p.grad is not None and float(p.grad.sum()))


def reset_state(self: Any) -> None:
    self.__dict__["_count"] = self.__dict__.get("_count", 0) + 1
    for entries in self.state.values():
        if "step" in entries:
            entries["step"].fill_(self.__dict__["_count"])


def contiguous_only(self: Any) -> None:
    every(self, lambda p: p.is_contiguous() or setattr(p, "grad", None))


def load_without_copy(self: Any, state_dict: Any) -> None:
    own = deepcopy(state_dict)
    Shampoo.load_state_dict(self, own)
    for saved, p in zip(state_dict["state"].values(), self.param_groups[0]["params"], strict=False):
        self.state[p] = saved


def load_and_keep_options(self: Any, state_dict: Any) -> None:
    options = [{k: v for k, v in group.items() if k in ("lr", "weight_decay")} for group in self.param_groups]
    Shampoo.load_state_dict(self, state_dict)
    for group, kept in zip(self.param_groups, options, strict=True):
        group.update(kept)


def load_everything(self: Any, state_dict: Any) -> None:
    try:
        Shampoo.load_state_dict(self, state_dict)
    except ValueError:
        self.state.clear()


def load_strictly(self: Any, state_dict: Any) -> None:
    for group in state_dict["param_groups"]:
        assert "maximize" in group
    Shampoo.load_state_dict(self, state_dict)


def load_without_hooks(self: Any, state_dict: Any) -> None:
    self._optimizer_load_state_dict_pre_hooks.clear()
    Shampoo.load_state_dict(self, state_dict)


def state_of_views(self: Any) -> Any:
    return Optimizer.__getstate__(self)


def nested(self: Any) -> None:
    for entries in self.state.values():
        entries["nested"] = {"step": entries["step"]}


def un_nested(self: Any) -> None:
    for entries in self.state.values():
        entries.pop("nested", None)


def random_state(self: Any) -> dict[str, Any]:
    found: dict[str, Any] = Shampoo.state_dict(self)
    found["param_groups"][0]["stamp"] = id(self)
    return found


class Opaque:
    """Something that weights_only does not load."""


def opaque_groups(self: Any) -> dict[str, Any]:
    found: dict[str, Any] = Shampoo.state_dict(self)
    found["param_groups"] = [group | {"opaque": Opaque()} for group in found["param_groups"]]
    return found


def silent(self: Any, params: Any, lr: Any = None, **options: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Shampoo.__init__(self, params, lr, **options)


def fresh_group(self: Any, param_group: dict[str, Any]) -> None:
    Shampoo.add_param_group(self, param_group | {"lr": self.defaults["lr"]})


def without_names(self: Any, param_group: dict[str, Any]) -> None:
    Shampoo.add_param_group(self, param_group)
    self.param_groups[-1].pop("param_names", None)


def no_default_dtypes(self: Any) -> None:
    every(self, lambda p: p.dtype in (torch.float32, torch.float64) or setattr(p, "grad", None))


def no_small_ones(self: Any) -> None:
    every(self, lambda p: (p.dim() and p.numel()) or setattr(p, "grad", None))


def keeps_state_by_id(self: Any) -> None:
    kept = self.__dict__.setdefault("_kept", {})
    for p, entries in kept.items():
        if self.state[p] is not entries:
            self.state[p] = entries
    kept.update({p: entries for p, entries in self.state.items() if entries})


def no_zero_grad(self: Any, set_to_none: bool = True) -> None:
    return None


def anonymous(self: Any) -> str:
    return "an optimizer"


def detached_copy(self: Any, memo: Any) -> Any:
    return self


def unties(self: Any) -> None:
    for group in self.param_groups:
        for p in list(group["params"]):
            self.state[torch.nn.Parameter(torch.zeros(1))] = {"step": self.state[p].get("step")}


def reads_parameters(self: Any, params: Any, lr: Any = None, **options: Any) -> None:
    Shampoo.__init__(self, params, lr, **options)
    every(self, lambda p: p.numel() and float(p.detach().reshape(-1)[0]))


def restores_data(self: Any) -> None:
    data = self.__dict__.setdefault("_data", {})
    every(self, lambda p: setattr(p, "data", data.setdefault(p, p.data)))


def one_clock(self: Any) -> None:
    latest = max((int(torch.as_tensor(entries["step"]).max()) for entries in self.state.values() if entries), default=0)
    for entries in self.state.values():
        if entries:
            entries["step"].fill_(latest)


def class_clock(self: Any) -> None:
    type(self)._count = getattr(type(self), "_count", 0) + 1
    for entries in self.state.values():
        entries["step"].fill_(type(self)._count)


def copied_parameters(self: Any, params: Any, lr: Any = None, **options: Any) -> None:
    Shampoo.__init__(self, [torch.nn.Parameter(p.detach().clone()) for p in params], lr, **options)


def idle_when_compiled(self: Any, closure: Any = None) -> Any:
    return None if torch.compiler.is_compiling() else STEP(self)


# by the check that must find it out
BROKEN: dict[str, type[Shampoo]] = {
    "it_descends": broken("Ascends", step=stepping(scaled(-1.0), scaled(-1.0))),
    "maximize_ascends": broken("Minimizes", step=stepping(lambda o: [g.update(maximize=False) for g in o.param_groups])),
    "grads_stay_as_they_are": broken("ScalesGrads", step=stepping(after=scaled(0.5))),
    "no_gradient_is_no_step": broken("Shrinks", step=stepping(after=lambda o: every(o, lambda p: p.mul_(0.999)))),
    "a_zero_gradient_moves_nothing_without_decay": broken(
        "Drifts", step=stepping(after=lambda o: every(o, lambda p: p.add_(0.01)))
    ),
    "decay_shrinks_under_a_zero_gradient": broken("NoDecay", __init__=with_init(weight_decay=0.0)),
    "gradients_come_and_go": broken("OneClock", step=stepping(after=one_clock)),
    "frozen_parameters_have_no_state": broken("FillsMissingGrads", step=stepping(fill_missing)),
    "a_closure_is_called_once_with_gradients_enabled": broken("ClosureTwice", step=closure_twice),
    "zero_grad_clears": broken("NoZeroGrad", zero_grad=no_zero_grad),
    "groups_have_options_of_their_own": broken(
        "OneLr", step=stepping(lambda o: [g.update(lr=o.param_groups[0]["lr"]) for g in o.param_groups])
    ),
    "a_group_may_be_added_at_any_time": broken("DefaultLr", add_param_group=fresh_group),
    "lr_is_read_at_every_step": broken("FirstLr", step=stepping(remembered("lr"))),
    "weight_decay_is_read_at_every_step": broken("FirstDecay", step=stepping(remembered("weight_decay"))),
    "lr_may_be_a_tensor": broken("FloatLr", step=stepping(plain_floats)),
    "parameters_may_be_named": broken("NoNames", add_param_group=without_names),
    "it_prints": broken("Anonymous", __repr__=anonymous),
    "groups_hold_plain_values": broken("OpaqueGroups", state_dict=opaque_groups),
    "wrong_arguments_are_refused": broken("Lax", __init__=lax_init),
    "one_parameter_twice_is_warned_of": broken("Silent", __init__=silent),
    "a_run_resumes_to_the_bit_at_any_step": broken("CountOnSelf", step=stepping(after=reset_state)),
    "a_bfloat16_run_resumes_to_the_bit": broken("BaseLoad", load_state_dict=base),
    "options_come_from_the_checkpoint": broken("KeepsItsOptions", load_state_dict=load_and_keep_options),
    "loading_leaves_the_checkpoint_alone": broken("SharesTheCheckpoint", load_state_dict=load_without_copy),
    "a_step_that_is_a_number_and_absent_options_load": broken("LoadsStrictly", load_state_dict=load_strictly),
    "another_model_is_refused": broken("LoadsAnything", load_state_dict=load_everything),
    "state_dicts_are_deterministic": broken("Stamped", state_dict=random_state),
    "state_is_flat_tensors_by_name": broken("NestedState", step=stepping(un_nested, nested)),
    "copies_go_their_own_way": broken("CopiesToItself", __deepcopy__=detached_copy),
    "a_pickle_is_as_large_as_what_it_holds": broken("PicklesViews", __getstate__=state_of_views),
    "every_floating_dtype": broken("SkipsHalf", step=stepping(no_default_dtypes)),
    "strides_do_not_matter": broken("ContiguousOnly", step=stepping(contiguous_only)),
    "no_dimension_and_no_element": broken("SkipsSmall", step=stepping(no_small_ones)),
    "complex_parameters_are_their_parts": broken("TurnsWaves", step=stepping(after=turns_waves)),
    "data_may_be_replaced": broken("RestoresData", step=stepping(restores_data)),
    "meta_parameters_materialise_later": broken("ReadsParameters", __init__=reads_parameters),
    "steps_on_meta_are_taken": broken("ReadsAValueOfMeta", step=stepping(reads_a_value)),
    "the_parameters_of_a_group_may_be_swapped": broken(
        "RemembersParameters", __init__=init_from_params, step=stepping(with_mine)
    ),
    "a_tied_parameter_is_one": broken("Unties", step=stepping(after=unties)),
    "state_in_place_is_state": broken("StateById", step=stepping(keeps_state_by_id)),
    "every_scheduler_drives_it": broken("FirstLrAgain", step=stepping(remembered("lr"))),
    "a_grad_scaler_skips_an_infinite_step": broken("ClaimsToScale", _step_supports_amp_scaling=True),
    "averaged_models_follow": broken("CopiedParameters", __init__=copied_parameters),
    "hooks_are_called": broken("LoadsWithoutHooks", load_state_dict=load_without_hooks),
    "a_step_may_sit_in_the_backward_pass": broken("ClassClock", step=stepping(after=class_clock)),
    "insides_may_be_swapped_for_a_while": broken("RemembersInsides", __init__=init_from_params, step=stepping(with_mine)),
    "it_steps_with_fake_tensors": broken("ReadsAValue", step=stepping(reads_a_value)),
    "it_steps_within_a_compiled_loop": broken("IdleWhenCompiled", step=idle_when_compiled),
}
